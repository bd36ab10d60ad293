"""Agents as the API answers them, and the snapshot that a session keeps.

Source of the shapes: `anthropic.types.beta`, package 2.12.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from galley_server.wire.base import JSON, Timestamp, Wire

SandboxTool: TypeAlias = Literal["bash", "read", "write", "edit", "glob", "grep"]
BuiltInTool: TypeAlias = Literal["bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"]


class AlwaysAllow(Wire):
    type: Literal["always_allow"] = "always_allow"


class AlwaysAsk(Wire):
    type: Literal["always_ask"] = "always_ask"


PermissionPolicy: TypeAlias = Annotated[AlwaysAllow | AlwaysAsk, Field(discriminator="type")]


EffortLevel: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]


class Effort(Wire):
    type: EffortLevel


class ModelConfig(Wire):
    id: str
    effort: Effort | None = None
    inference_geo: str | None = None
    speed: Literal["standard", "fast"] | None = None


class ToolDefault(Wire):
    enabled: bool
    permission_policy: PermissionPolicy


class SandboxToolConfig(Wire):
    type: SandboxTool
    name: SandboxTool
    enabled: bool
    permission_policy: PermissionPolicy


class EverySource(Wire):
    type: Literal["all", "none"]


class ToolReference(Wire):
    type: Literal["tool_reference"] = "tool_reference"
    name: str


class SomeSources(Wire):
    type: Literal["only", "except"]
    tools: tuple[ToolReference, ...]


class UrlSources(Wire):
    """Where the URLs may come from that `web_fetch` fetches; null allows every one."""

    client_tool_results: Annotated[EverySource | SomeSources, Field(discriminator="type")] | None = None
    server_tool_results: Annotated[EverySource | SomeSources, Field(discriminator="type")] | None = None
    user_input: EverySource | None = None


class WebFetchConfig(Wire):
    type: Literal["web_fetch"] = "web_fetch"
    name: Literal["web_fetch"] = "web_fetch"
    enabled: bool
    permission_policy: PermissionPolicy
    allowed_domains: tuple[str, ...] | None = None
    blocked_domains: tuple[str, ...] | None = None
    max_content_tokens: int | None = None
    url_sources: UrlSources | None = None


class UserLocation(Wire):
    type: Literal["approximate"]
    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class WebSearchConfig(Wire):
    type: Literal["web_search"] = "web_search"
    name: Literal["web_search"] = "web_search"
    enabled: bool
    permission_policy: PermissionPolicy
    allowed_domains: tuple[str, ...] | None = None
    blocked_domains: tuple[str, ...] | None = None
    user_location: UserLocation | None = None


BuiltInToolConfig: TypeAlias = Annotated[
    SandboxToolConfig | WebFetchConfig | WebSearchConfig, Field(discriminator="type")
]


class AgentToolset(Wire):
    type: Literal["agent_toolset_20260401"] = "agent_toolset_20260401"
    default_config: ToolDefault
    configs: tuple[BuiltInToolConfig, ...]


class McpToolConfig(Wire):
    name: str
    enabled: bool
    permission_policy: PermissionPolicy


class McpToolset(Wire):
    type: Literal["mcp_toolset"] = "mcp_toolset"
    mcp_server_name: str
    default_config: ToolDefault
    configs: tuple[McpToolConfig, ...]


class InputSchema(Wire):
    """A JSON Schema of type object; keywords beyond these three pass through."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JSON]

    type: Literal["object"] = "object"
    properties: dict[str, JSON] | None = None
    required: tuple[str, ...] | None = None


class CustomTool(Wire):
    type: Literal["custom"] = "custom"
    name: str
    description: str
    input_schema: InputSchema


Tool: TypeAlias = Annotated[AgentToolset | McpToolset | CustomTool, Field(discriminator="type")]


class McpServer(Wire):
    type: Literal["url"] = "url"
    name: str
    url: str


class ServiceAccount(Wire):
    type: Literal["service_account"] = "service_account"


class Recipe(Wire):
    """What an agent is, whichever way it is shown."""

    id: str
    type: Literal["agent"] = "agent"
    version: int
    name: str
    description: str | None
    model: ModelConfig
    system: str | None
    tools: tuple[Tool, ...]
    mcp_servers: tuple[McpServer, ...]
    skills: tuple[()] = ()
    multiagent: None = None
    execution_identity: ServiceAccount = ServiceAccount()


class SessionAgent(Recipe):
    """The snapshot a session was created with (or was given since)."""


class Agent(Recipe):
    metadata: dict[str, str]
    created_at: Timestamp
    updated_at: Timestamp
    archived_at: Timestamp | None
