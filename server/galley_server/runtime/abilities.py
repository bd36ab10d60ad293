"""What an agent may do, as a person wants to read it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from galley_server.hands.permission import Governed, rule
from galley_server.wire.agent import CustomTool, Recipe, SandboxTool

SANDBOX_TOOLS: Final[Sequence[SandboxTool]] = get_args(SandboxTool)


@dataclass(frozen=True, slots=True)
class Abilities:
    """`tools`: the built-in tools that are enabled, then the custom ones. `asked`: those that wait for a person.

    What its MCP servers offer shows when a session asks them.
    """

    tools: tuple[str, ...]
    asked: tuple[str, ...]
    servers: tuple[str, ...]


def abilities_of(agent: Recipe) -> Abilities:
    governed = {name: ruling for name in SANDBOX_TOOLS if isinstance(ruling := rule(agent, name), Governed)}
    custom = [tool.name for tool in agent.tools if isinstance(tool, CustomTool)]
    asked = [name for name, ruling in governed.items() if ruling.permission == "ask"]
    return Abilities((*governed, *custom), tuple(asked), tuple(server.name for server in agent.mcp_servers))
