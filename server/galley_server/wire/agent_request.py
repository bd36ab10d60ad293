"""Requests about agents: what may be sent, with the documented limits. No I/O here.

A field that was left out and one that was set to null differ in updates: `model_fields_set` tells them apart.
Source of the shapes: `anthropic.types.beta`, package 2.12.
"""

import ipaddress
import re
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, field_validator, model_validator

from galley_server.wire.agent import (
    AlwaysAllow,
    AlwaysAsk,
    Effort,
    EffortLevel,
    EverySource,
    SandboxTool,
    ServiceAccount,
    SomeSources,
    UserLocation,
)
from galley_server.wire.base import JSON, Wire
from galley_server.wire.bounds import (
    Description,
    Id,
    McpUrl,
    Metadata,
    MetadataPatch,
    Name,
    NoMultiagent,
    NoSkills,
    SystemPrompt,
    Version,
    unique,
)
from galley_server.wire.union import ByType
from galley_server.wire.validation import RuleBroken

MAX_TOOLS: Final = 128
BUILT_IN: Final = frozenset({"bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"})

_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PROPERTY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LOCAL: Final = ("localhost", "local", "internal")

NO_AUTO_POLICY: Final = ByType(
    refused=(
        (
            "auto",
            "The permission policy 'auto' is not supported in this release of Galley; use 'always_allow' or "
            "'always_ask'",
        ),
    )
)
NO_AWS_ROLE: Final = ByType(
    refused=(("aws_role", "The execution identity 'aws_role' is not supported; use 'service_account'"),)
)
PolicyParam: TypeAlias = Annotated[AlwaysAllow | AlwaysAsk, NO_AUTO_POLICY]
IdentityParam: TypeAlias = Annotated[ServiceAccount, NO_AWS_ROLE]


class ModelConfigParams(Wire):
    id: Name
    effort: Annotated[EffortLevel | Effort, ByType()] | None = None
    inference_geo: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    speed: Literal["standard", "fast"] | None = None


ModelParam: TypeAlias = Annotated[Name | ModelConfigParams, ByType()]


class ToolDefaultParams(Wire):
    enabled: bool | None = None
    permission_policy: PolicyParam | None = None


class SandboxToolParams(ToolDefaultParams):
    name: SandboxTool
    type: SandboxTool | None = None


def _domain(entry: str, *, path_allowed: bool) -> str | None:
    """Return what is wrong with an entry of a list of domains, if anything."""
    hint = 'provide a plain hostname like "example.com"'
    if not 1 <= len(entry) <= 255:
        return f"entries have 1 to 255 characters; {hint}"
    host, slash, _ = entry.partition("/")
    if "://" in entry or (slash and not path_allowed):
        return f"schemes and paths are not supported; {hint}"
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    else:
        return f"IP addresses are not supported; {hint}"
    labels = host.split(".")
    if len(labels) < 2 or labels[-1].lower() in _LOCAL:
        return f"top-level and local names are not supported; {hint}"
    if not all(_LABEL.fullmatch(label) for label in labels):
        return f"not a hostname in ASCII (write international names in punycode, without wildcard or port); {hint}"
    return None


Domains: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]


class _WithDomains(ToolDefaultParams):
    allowed_domains: Domains | None = None
    blocked_domains: Domains | None = None

    @model_validator(mode="after")
    def _check_domains(self) -> "_WithDomains":
        if self.allowed_domains is not None and self.blocked_domains is not None:
            raise RuleBroken("allowed_domains and blocked_domains cannot be combined", "blocked_domains")
        for name, entries in (("allowed_domains", self.allowed_domains), ("blocked_domains", self.blocked_domains)):
            for index, entry in enumerate(entries or ()):
                wrong = _domain(entry, path_allowed=isinstance(self, WebSearchParams))
                if wrong:
                    raise RuleBroken(wrong, name, index)
        return self


Shorthand: TypeAlias = Literal["all", "none"]
UserInputParam: TypeAlias = Annotated[Shorthand | EverySource, ByType()]
ToolFilterParam: TypeAlias = Annotated[Shorthand | EverySource | SomeSources, ByType()]


class UrlSourcesParams(Wire):
    client_tool_results: ToolFilterParam | None = None
    server_tool_results: ToolFilterParam | None = None
    user_input: UserInputParam | None = None


class WebFetchParams(_WithDomains):
    name: Literal["web_fetch"]
    type: Literal["web_fetch"] | None = None
    max_content_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    url_sources: UrlSourcesParams | None = None


class WebSearchParams(_WithDomains):
    name: Literal["web_search"]
    type: Literal["web_search"] | None = None
    user_location: UserLocation | None = None


BuiltInToolParams: TypeAlias = Annotated[SandboxToolParams | WebFetchParams | WebSearchParams, ByType(by="name")]


class AgentToolsetParams(Wire):
    type: Literal["agent_toolset_20260401"]
    configs: tuple[BuiltInToolParams, ...] = ()
    default_config: ToolDefaultParams | None = None

    @field_validator("configs")
    @classmethod
    def _check_configs(cls, configs: tuple[BuiltInToolParams, ...]) -> tuple[BuiltInToolParams, ...]:
        unique(configs, lambda config: config.name, field="name", what="The tool")
        for index, config in enumerate(configs):
            if config.type not in (None, config.name):
                raise RuleBroken(f"Input should be '{config.name}', the same as name", index, "type")
        return configs


class McpToolConfigParams(ToolDefaultParams):
    name: Annotated[str, Field(min_length=1, max_length=128)]


class McpToolsetParams(Wire):
    type: Literal["mcp_toolset"]
    mcp_server_name: Annotated[str, Field(min_length=1, max_length=255)]
    configs: tuple[McpToolConfigParams, ...] = ()
    default_config: ToolDefaultParams | None = None

    @field_validator("configs")
    @classmethod
    def _check_configs(cls, configs: tuple[McpToolConfigParams, ...]) -> tuple[McpToolConfigParams, ...]:
        unique(configs, lambda config: config.name, field="name", what="The tool")
        return configs


class InputSchemaParam(Wire):
    """A JSON Schema. Keywords that are not named here pass through."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JSON]

    type: Literal["object"]
    properties: dict[str, JSON] | None = None
    required: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "InputSchemaParam":
        extra = self.__pydantic_extra__ or {}
        for keyword in ("oneOf", "anyOf", "allOf"):
            if keyword in extra:
                raise RuleBroken(f"{keyword} is not supported at the top level", keyword)
        for name in self.properties or {}:
            if not _PROPERTY.fullmatch(name):
                raise RuleBroken(
                    "Property names should have 1 to 64 characters: letters, digits, '_', '.' and '-'",
                    "properties",
                    name,
                )
        path = _find_ref({"properties": self.properties, **extra})
        if path is not None:
            raise RuleBroken("$ref is not supported", *path)
        return self


def _find_ref(node: JSON, *, is_schema: bool = True) -> tuple[str | int, ...] | None:
    """Return the path to a `$ref` keyword. A property may be called `$ref`; what is under `properties` is names."""
    if isinstance(node, list):
        children: list[tuple[str | int, JSON]] = list(enumerate(node))
    elif isinstance(node, dict):
        if is_schema and "$ref" in node:
            return ("$ref",)
        children = list(node.items())
    else:
        return None
    for step, child in children:
        if is_schema and step in ("enum", "const", "default", "examples"):
            continue  # data, not schema
        found = _find_ref(child, is_schema=not (is_schema and step in ("properties", "patternProperties")))
        if found is not None:
            return (step, *found)
    return None


class CustomToolParams(Wire):
    type: Literal["custom"]
    name: str
    description: Annotated[str, Field(min_length=1)]
    input_schema: InputSchemaParam

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _TOOL_NAME.fullmatch(name):
            raise RuleBroken("Tool names should have 1 to 128 characters: letters, digits, '_' and '-'")
        if name in BUILT_IN:
            raise RuleBroken(f"'{name}' is the name of a built-in tool; choose another one")
        if name.startswith("mcp__"):
            raise RuleBroken("Names that begin with 'mcp__' belong to tools of MCP servers; choose another one")
        return name


ToolParam: TypeAlias = Annotated[AgentToolsetParams | McpToolsetParams | CustomToolParams, ByType()]


def _check_tools(tools: tuple[ToolParam, ...] | None) -> tuple[ToolParam, ...] | None:
    given = tools or ()
    unique(given, lambda tool: tool.name if isinstance(tool, CustomToolParams) else None, field="name", what="The tool")
    unique(
        given,
        lambda tool: tool.mcp_server_name if isinstance(tool, McpToolsetParams) else None,
        field="mcp_server_name",
        what="The toolset of",
    )
    unique(
        given,
        lambda tool: tool.type if isinstance(tool, AgentToolsetParams) else None,
        field="type",
        what="The toolset",
    )
    return tools


class McpServerParams(Wire):
    type: Literal["url"]
    name: Annotated[str, Field(min_length=1, max_length=255)]
    url: McpUrl


def _check_servers(servers: tuple[McpServerParams, ...] | None) -> tuple[McpServerParams, ...] | None:
    unique(servers or (), lambda server: server.name, field="name", what="The MCP server")
    return servers


Tools: TypeAlias = Annotated[tuple[ToolParam, ...], Field(max_length=MAX_TOOLS)]
McpServers: TypeAlias = Annotated[tuple[McpServerParams, ...], Field(max_length=20)]


class WithTools(Wire):
    """Lists of tools and servers by themselves; that each names the other is a rule about the agent that results."""

    @field_validator("tools", check_fields=False)
    @classmethod
    def _tools(cls, tools: tuple[ToolParam, ...] | None) -> tuple[ToolParam, ...] | None:
        return _check_tools(tools)

    @field_validator("mcp_servers", check_fields=False)
    @classmethod
    def _servers(cls, servers: tuple[McpServerParams, ...] | None) -> tuple[McpServerParams, ...] | None:
        return _check_servers(servers)


class AgentCreate(WithTools):
    name: Name
    model: ModelParam
    description: Description | None = None
    system: SystemPrompt | None = None
    tools: Tools = ()
    mcp_servers: McpServers = ()
    skills: NoSkills = ()
    multiagent: NoMultiagent = None
    metadata: Metadata = Field(default_factory=dict)
    execution_identity: IdentityParam | None = None


class AgentUpdate(WithTools):
    """Left out: kept. Null: cleared, where that is allowed."""

    version: Version = 0
    name: Name = ""
    model: ModelParam = ""
    description: Description | None = None
    system: SystemPrompt | None = None
    tools: Tools | None = None
    mcp_servers: McpServers | None = None
    skills: NoSkills = None
    multiagent: NoMultiagent = None
    metadata: MetadataPatch | None = None
    execution_identity: IdentityParam | None = None


class AgentRef(Wire):
    type: Literal["agent"]
    id: Id
    version: Version | None = None


class AgentWithOverrides(WithTools):
    """Left out: the agent's own value. What is given replaces it whole."""

    type: Literal["agent_with_overrides"]
    id: Id
    version: Version | None = None
    model: ModelParam = ""
    system: SystemPrompt | None = None
    tools: Tools = ()
    mcp_servers: McpServers = ()
    skills: NoSkills = ()

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, model: object) -> object:
        if model is None:
            raise RuleBroken("The model of a session cannot be cleared", code="agent_model_required")
        return model
