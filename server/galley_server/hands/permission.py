"""May this agent use this tool, and must a person be asked first. Pure: no I/O here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from galley_server.hands.mcp import MCP_PREFIX, by_model_name
from galley_server.log.internal import McpListing
from galley_server.wire.agent import (
    AgentToolset,
    AlwaysAllow,
    AlwaysAsk,
    BuiltInTool,
    BuiltInToolConfig,
    CustomTool,
    PermissionPolicy,
    Recipe,
    ToolDefault,
)


@dataclass(frozen=True, slots=True)
class McpRef:
    """A tool as its MCP server calls it."""

    server: str
    tool: str


@dataclass(frozen=True, slots=True)
class Governed:
    """An enabled tool that runs here, or (`mcp`) at an MCP server. Its policy decides."""

    policy: PermissionPolicy
    mcp: McpRef | None = None

    @property
    def permission(self) -> Literal["allow", "ask"]:
        match self.policy:
            case AlwaysAllow():
                return "allow"
            case AlwaysAsk():
                return "ask"


@dataclass(frozen=True, slots=True)
class Custom:
    """A custom tool: the client runs it, no policy governs it."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Refused before any policy: the tool is not enabled, or there is none of that name. `reason` is for the model."""

    reason: str
    mcp: McpRef | None = None


Ruling: TypeAlias = Governed | Custom | Denied

_BUILT_IN: Final = frozenset(get_args(BuiltInTool))
_NOT_RUN_HERE: Final = frozenset({"web_search", "web_fetch"})


def rule(agent: Recipe, name: str, listed: Mapping[str, McpListing] | None = None) -> Ruling:
    """Evaluate a tool name that a model called against the agent's snapshot, and what its MCP servers `listed`."""
    if any(isinstance(tool, CustomTool) and tool.name == name for tool in agent.tools):
        return Custom()
    if name.startswith(MCP_PREFIX):
        return _mcp(agent, name, listed or {})
    configured = _built_in(agent, name)
    if configured is None:
        return Denied(f"There is no tool named {name!r}.")
    if not configured.enabled or name in _NOT_RUN_HERE:
        return Denied(f"The tool {name!r} is not enabled for this agent.")
    return Governed(configured.permission_policy)


def _mcp(agent: Recipe, name: str, listed: Mapping[str, McpListing]) -> Ruling:
    found = by_model_name(agent, listed).get(name)
    if found is None:
        return Denied(f"There is no tool named {name!r}.")
    ref = McpRef(found.server, found.tool.name)
    if not found.config.enabled:
        return Denied(f"The tool {name!r} is not enabled for this agent.", ref)
    return Governed(found.config.permission_policy, ref)


def enabled(agent: Recipe, name: str) -> bool:
    """Whether a built-in tool of this name is offered to the agent."""
    return isinstance(rule(agent, name), Governed)


def _built_in(agent: Recipe, name: str) -> ToolDefault | BuiltInToolConfig | None:
    if name not in _BUILT_IN:
        return None
    for tool in agent.tools:
        if isinstance(tool, AgentToolset):
            return next((config for config in tool.configs if config.name == name), tool.default_config)
    return None
