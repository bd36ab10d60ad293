"""What an agent becomes of a request: defaults filled in, updates merged, overrides applied. Pure, no I/O here."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from galley_server.errors import InvalidRequest
from galley_server.wire.agent import (
    Agent,
    AgentToolset,
    AlwaysAllow,
    AlwaysAsk,
    BuiltInToolConfig,
    CustomTool,
    Effort,
    EverySource,
    InputSchema,
    McpServer,
    McpToolConfig,
    McpToolset,
    ModelConfig,
    PermissionPolicy,
    SandboxToolConfig,
    SessionAgent,
    SomeSources,
    Tool,
    ToolDefault,
    UrlSources,
    WebFetchConfig,
    WebSearchConfig,
)
from galley_server.wire.agent_request import (
    AgentCreate,
    AgentToolsetParams,
    AgentUpdate,
    AgentWithOverrides,
    BuiltInToolParams,
    CustomToolParams,
    McpServerParams,
    McpToolsetParams,
    ModelConfigParams,
    SandboxToolParams,
    ToolDefaultParams,
    ToolParam,
    UrlSourcesParams,
    WebFetchParams,
    WebSearchParams,
)
from galley_server.wire.bounds import MAX_PAIRS
from galley_server.wire.session_request import SessionAgentUpdate


def new_agent(request: AgentCreate, *, agent_id: str, at: datetime) -> Agent:
    agent = Agent(
        id=agent_id,
        version=1,
        name=request.name,
        description=request.description or None,
        model=model_config(request.model),
        system=request.system or None,
        tools=tools(request.tools),
        mcp_servers=servers(request.mcp_servers),
        metadata=request.metadata,
        created_at=at,
        updated_at=at,
        archived_at=None,
    )
    check_references(agent.tools, agent.mcp_servers)
    return agent


def updated(agent: Agent, request: AgentUpdate, *, at: datetime) -> Agent:
    """Return the next version, or `agent` itself if nothing changes."""
    given = request.model_fields_set
    changes: dict[str, object] = {}
    if "name" in given:
        changes["name"] = request.name
    if "model" in given:
        changes["model"] = model_config(request.model, stored=agent.model)
    if "description" in given:
        changes["description"] = request.description or None
    if "system" in given:
        changes["system"] = request.system or None
    if "tools" in given:
        changes["tools"] = tools(request.tools or ())
    if "mcp_servers" in given:
        changes["mcp_servers"] = servers(request.mcp_servers or ())
    if "metadata" in given:
        changes["metadata"] = {} if request.metadata is None else patched(agent.metadata, request.metadata)
    changed = agent.model_copy(update=changes)
    check_references(changed.tools, changed.mcp_servers)
    if changed == agent:
        return agent
    return changed.model_copy(update={"version": agent.version + 1, "updated_at": at})


def snapshot(agent: Agent) -> SessionAgent:
    return SessionAgent(**{name: getattr(agent, name) for name in SessionAgent.model_fields})


def overridden(agent: SessionAgent, request: AgentWithOverrides) -> SessionAgent:
    """The agent as one session runs it. What is given replaces the agent's value whole."""
    given = request.model_fields_set
    changes: dict[str, object] = {}
    if "model" in given:
        # The official API runs an overridden model at its default effort.
        changes["model"] = model_config(request.model).model_copy(update={"effort": None})
    if "system" in given:
        changes["system"] = request.system or None
    if "tools" in given:
        changes["tools"] = tools(request.tools)
    if "mcp_servers" in given:
        changes["mcp_servers"] = servers(request.mcp_servers)
    changed = agent.model_copy(update=changes)
    check_references(changed.tools, changed.mcp_servers, at="agent.")
    return changed


def reequipped(agent: SessionAgent, request: SessionAgentUpdate) -> SessionAgent:
    """The agent of a session with other tools or servers, each list replaced whole if it is given."""
    given = request.model_fields_set
    changes: dict[str, object] = {}
    if "tools" in given:
        changes["tools"] = tools(request.tools)
    if "mcp_servers" in given:
        changes["mcp_servers"] = servers(request.mcp_servers)
    changed = agent.model_copy(update=changes)
    check_references(changed.tools, changed.mcp_servers, at="agent.")
    return changed


def patched(bag: Mapping[str, str], patch: Mapping[str, str | None], *, empty_deletes: bool = False) -> dict[str, str]:
    """Merge key by key: a string sets, null deletes."""
    merged = dict(bag)
    for key, value in patch.items():
        if value is None or (empty_deletes and value == ""):
            merged.pop(key, None)
        else:
            merged[key] = value
    if len(merged) > MAX_PAIRS:
        raise InvalidRequest(
            f"metadata: Metadata should have at most {MAX_PAIRS} pairs (got {len(merged)} after the update)",
            error_code="invalid_metadata",
        )
    return merged


def model_config(request: str | ModelConfigParams, *, stored: ModelConfig | None = None) -> ModelConfig:
    """The whole configuration is replaced, but for the effort, which stays with a model that stays."""
    if isinstance(request, str):
        request = ModelConfigParams(id=request)
    effort = Effort(type=request.effort) if isinstance(request.effort, str) else request.effort
    if "effort" not in request.model_fields_set and stored is not None and stored.id == request.id:
        effort = stored.effort
    return ModelConfig(
        id=request.id, effort=effort, inference_geo=request.inference_geo, speed=request.speed or "standard"
    )


def servers(requests: Sequence[McpServerParams]) -> tuple[McpServer, ...]:
    return tuple(McpServer(name=request.name, url=request.url) for request in requests)


def tools(requests: Sequence[ToolParam]) -> tuple[Tool, ...]:
    return tuple(_tool(request) for request in requests)


def check_references(tools: Sequence[Tool], servers: Sequence[McpServer], *, at: str = "") -> None:
    """Every server is used by a toolset, and every toolset's server is there."""
    known = {server.name for server in servers}
    used = {tool.mcp_server_name for tool in tools if isinstance(tool, McpToolset)}
    for index, tool in enumerate(tools):
        if isinstance(tool, McpToolset) and tool.mcp_server_name not in known:
            raise InvalidRequest(
                f"{at}tools.{index}.mcp_server_name: '{tool.mcp_server_name}' is not the name of one of mcp_servers"
            )
    for index, server in enumerate(servers):
        if server.name not in used:
            raise InvalidRequest(f"{at}mcp_servers.{index}.name: no mcp_toolset in tools refers to '{server.name}'")


def _tool(request: ToolParam) -> Tool:
    match request:
        case AgentToolsetParams():
            default = _default(request.default_config, AlwaysAllow())
            return AgentToolset(
                default_config=default, configs=tuple(_built_in(config, default) for config in request.configs)
            )
        case McpToolsetParams():
            default = _default(request.default_config, AlwaysAsk())
            return McpToolset(
                mcp_server_name=request.mcp_server_name,
                default_config=default,
                configs=tuple(
                    McpToolConfig(
                        name=config.name, enabled=_enabled(config, default), permission_policy=_policy(config, default)
                    )
                    for config in request.configs
                ),
            )
        case CustomToolParams():
            schema = InputSchema.model_validate(request.input_schema.model_dump(exclude_unset=True))
            return CustomTool(name=request.name, description=request.description, input_schema=schema)


def _default(request: ToolDefaultParams | None, policy: PermissionPolicy) -> ToolDefault:
    own = ToolDefault(enabled=True, permission_policy=policy)
    if request is None:
        return own
    return ToolDefault(enabled=_enabled(request, own), permission_policy=_policy(request, own))


def _enabled(request: ToolDefaultParams, default: ToolDefault) -> bool:
    return default.enabled if request.enabled is None else request.enabled


def _policy(request: ToolDefaultParams, default: ToolDefault) -> PermissionPolicy:
    return request.permission_policy or default.permission_policy


def _built_in(request: BuiltInToolParams, default: ToolDefault) -> BuiltInToolConfig:
    enabled, policy = _enabled(request, default), _policy(request, default)
    match request:
        case SandboxToolParams(name=name):
            return SandboxToolConfig(type=name, name=name, enabled=enabled, permission_policy=policy)
        case WebSearchParams():
            return WebSearchConfig(
                enabled=enabled,
                permission_policy=policy,
                allowed_domains=request.allowed_domains,
                blocked_domains=request.blocked_domains,
                user_location=request.user_location,
            )
        case WebFetchParams():
            return WebFetchConfig(
                enabled=enabled,
                permission_policy=policy,
                allowed_domains=request.allowed_domains,
                blocked_domains=request.blocked_domains,
                max_content_tokens=request.max_content_tokens,
                url_sources=None if request.url_sources is None else _url_sources(request.url_sources),
            )


def _url_sources(request: UrlSourcesParams) -> UrlSources:
    user_input = request.user_input
    return UrlSources(
        client_tool_results=_filter(request.client_tool_results),
        server_tool_results=_filter(request.server_tool_results),
        user_input=EverySource(type=user_input) if isinstance(user_input, str) else user_input,
    )


def _filter(given: str | EverySource | SomeSources | None) -> EverySource | SomeSources | None:
    match given:
        case "all" | "none":
            return EverySource(type=given)
        case EverySource() | SomeSources() | None:
            return given
        case _:
            raise ValueError(given)
