"""The tools of MCP servers as a model is offered them. Pure.

A model sees `mcp__SERVER__TOOL`. The API wants 1 to 128 letters, digits, `_` and `-`, and no name twice, so a name that
does not fit is made to; what it stands for is found again by making the names anew.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from galley_server.hands.access import unlike
from galley_server.hands.port import ToolDefinition
from galley_server.log.internal import McpListing, McpTool
from galley_server.wire.agent import McpToolConfig, McpToolset, Recipe, ToolDefault
from galley_server.wire.base import JSON

MOST: Final = 512
"""Most tools of one session that are offered; an agent may have 256 by the official limits, so only a server that
misbehaves comes near."""

_MCP: Final = "mcp"
MCP_PREFIX: Final = f"{_MCP}__"
"""How the name of every such tool begins, and of no other: an agent's custom tools may not be called so."""

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST: Final = 128
_PROPERTY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOT_ON_TOP: Final = frozenset({"oneOf", "anyOf", "allOf"})


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool of a server, and what the agent's toolset says about it."""

    server: str
    tool: McpTool
    config: ToolDefault | McpToolConfig


def by_model_name(agent: Recipe, listed: Mapping[str, McpListing]) -> Mapping[str, OfferedTool]:
    """Every tool that the agent's servers list, enabled or not, under the name that a model knows it by."""
    found: list[OfferedTool] = []
    for server in agent.mcp_servers:
        listing = listed.get(server.name)
        if listing is None or listing.url != server.url:
            continue
        found += [
            OfferedTool(server.name, tool, config)
            for tool in listing.tools or ()
            if (config := _config(agent, server.name, tool.name)) is not None
        ]
    names = unlike(((_MCP, one.server, one.tool.name) for one in found), _UNFIT, most=_LONGEST)
    return dict(zip(names, found, strict=True))


def definitions(agent: Recipe, listed: Mapping[str, McpListing]) -> tuple[ToolDefinition, ...]:
    """The enabled ones, in the order of the agent's servers and of their own lists."""
    offered = (
        ToolDefinition(name, _description(one), schema)
        for name, one in by_model_name(agent, listed).items()
        if one.config.enabled and (schema := presentable(one.tool.input_schema)) is not None
    )
    return tuple(islice(offered, MOST))


def presentable(schema: Mapping[str, JSON]) -> Mapping[str, JSON] | None:
    """The schema as the Messages API takes it, None if it cannot be said there. One that it refuses ends a turn.

    What is left out here is not lost: the MCP door checks each call against the whole schema.
    """
    properties = schema.get("properties", {})
    if schema.get("type", "object") != "object" or not isinstance(properties, dict):
        return None
    if not all(_PROPERTY.fullmatch(name) for name in properties):
        return None
    return {"type": "object"} | {key: value for key, value in schema.items() if key not in _NOT_ON_TOP}


def schema_of(listed: Mapping[str, McpListing], server: str, tool: str) -> Mapping[str, JSON] | None:
    """The schema of a tool as its server listed it."""
    listing = listed.get(server)
    tools = () if listing is None else listing.tools or ()
    return next((one.input_schema for one in tools if one.name == tool), None)


def _description(one: OfferedTool) -> str:
    return one.tool.description or f"The tool {one.tool.name} of the MCP server {one.server}."


def _config(agent: Recipe, server: str, tool: str) -> ToolDefault | McpToolConfig | None:
    for toolset in agent.tools:
        if isinstance(toolset, McpToolset) and toolset.mcp_server_name == server:
            return next((config for config in toolset.configs if config.name == tool), toolset.default_config)
    return None
