"""The one decision: may this grant do that? Pure: no I/O, no clock (an expired grant never gets here).

Both doors ask it, for what they list as well as for what they do, so that what is shown and what is allowed agree.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never
from urllib.parse import unquote, urlsplit

from galley_vault_proxy.grant.token import Grant, HostRule, ServerRule
from galley_vault_proxy.hosts import host_matches, normal_host
from galley_vault_proxy.presets import PACKAGE_HOSTS

Reason: TypeAlias = Literal[
    "server_not_granted",
    "tool_not_granted",
    "method_not_granted",
    "host_not_granted",
    "port_not_granted",
    "request_not_granted",
]

DEFAULT_PORTS: Final = (80, 443)
# What a client needs around the tools it may call. Resources, prompts and completions are other ways to a server's
# data, so a grant for certain tools does not include them.
_AROUND_TOOLS: Final = re.compile(
    r"initialize|ping|server/discover|notifications/.+|tools/(list|call)|logging/setLevel|tasks/.+"
    r"|subscriptions/listen|roots/list|sampling/createMessage|elicitation/create"
)


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """Anything asked of an MCP server but a tool call. `method` None: to connect at all."""

    server: str
    method: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    server: str
    tool: str


@dataclass(frozen=True, slots=True)
class HostAccess:
    """`host` in its normal spelling. Without `method` and `path`: a connection, before anything of it is read.

    `path` as it stands in the request line, without the query.
    """

    host: str
    port: int
    method: str | None = None
    path: str | None = None


Request: TypeAlias = ServerAccess | ToolCall | HostAccess


@dataclass(frozen=True, slots=True)
class Allow:
    """`inspect`: only on the condition that every request of the connection is read and decided on by itself."""

    inspect: bool = False


@dataclass(frozen=True, slots=True)
class Deny:
    """`reason` is for the audit, `message` for whoever asked."""

    reason: Reason
    message: str


Decision: TypeAlias = Allow | Deny


def decide(grant: Grant, request: Request) -> Decision:
    match request:
        case ServerAccess(server=server, method=method):
            rule = grant.server(server)
            return _unknown_server(server) if rule is None else _server(rule, method)
        case ToolCall(server=server, tool=tool):
            rule = grant.server(server)
            return _unknown_server(server) if rule is None else _tool(rule, tool)
        case HostAccess():
            return _host(grant, request)
        case _:
            assert_never(request)


def preset_hosts(grant: Grant) -> frozenset[str]:
    """The hosts that the grant's presets open, on the usual ports."""
    hosts: set[str] = set()
    for preset in grant.presets:
        match preset:
            case "package_managers":
                hosts |= PACKAGE_HOSTS
            case "mcp_servers":
                hosts.update(_hosts_of(grant.servers))
            case _:
                assert_never(preset)
    return frozenset(hosts)


def _server(rule: ServerRule, method: str | None) -> Decision:
    if rule.everything or method is None or _AROUND_TOOLS.fullmatch(method):
        return Allow()
    return Deny(
        "method_not_granted", f"this grant is for certain tools of {rule.name} only: {method} is not among them"
    )


def _tool(rule: ServerRule, tool: str) -> Decision:
    if rule.allows(tool):
        return Allow()
    return Deny("tool_not_granted", f"this grant does not include the tool {tool} of {rule.name}")


def _unknown_server(name: str) -> Deny:
    return Deny("server_not_granted", f"this grant does not include the MCP server {name}")


def _host(grant: Grant, request: HostAccess) -> Decision:
    """A host that has rules is held to them, under `unrestricted` too."""
    rules = [rule for rule in grant.hosts if host_matches(rule.host, request.host)]
    if not rules:
        return _without_rule(grant, request)
    on_port = [rule for rule in rules if _port_allowed(grant, rule, request.port)]
    if not on_port:
        return Deny("port_not_granted", f"this grant does not include port {request.port} of {request.host}")
    if any(not rule.inspected for rule in on_port):
        return Allow()
    if request.method is None:
        return Allow(inspect=True)
    if any(_request_allowed(rule, request.method, request.path) for rule in on_port):
        return Allow(inspect=True)
    return Deny("request_not_granted", f"this grant does not include {request.method} of that path on {request.host}")


def _port_allowed(grant: Grant, rule: HostRule, port: int) -> bool:
    if rule.ports is not None:
        return port in rule.ports
    return grant.network == "unrestricted" or port in DEFAULT_PORTS


def _without_rule(grant: Grant, request: HostAccess) -> Decision:
    if grant.network == "unrestricted":
        return Allow()
    if request.host not in preset_hosts(grant):
        return Deny("host_not_granted", f"this grant does not include the host {request.host}")
    if request.port not in DEFAULT_PORTS:
        return Deny("port_not_granted", f"this grant does not include port {request.port} of {request.host}")
    return Allow()


def _request_allowed(rule: HostRule, method: str, path: str | None) -> bool:
    if rule.methods is not None and method.upper() not in rule.methods:
        return False
    return rule.paths is None or (path is not None and _path_allowed(rule.paths, path))


def _path_allowed(prefixes: Iterable[str], path: str) -> bool:
    if not _one_meaning(path):
        return False
    return any(path == prefix or path.startswith(prefix.removesuffix("/") + "/") for prefix in prefixes)


def _one_meaning(path: str) -> bool:
    """Whether every server reads the path alike. `/a/../b`, `/a%2fb`, `/a//b` and `/a\\b` may mean another place."""
    if not path.startswith("/") or not path.isprintable() or "//" in path or "\\" in path:
        return False
    plain = unquote(path, errors="replace")
    if plain.count("/") != path.count("/") or "\\" in plain or "%" in plain or not plain.isprintable():
        return False
    # `;` starts parameters of a segment for some servers: `/a/..;/b` is `/b` for those.
    return not any(segment.partition(";")[0] in (".", "..") for segment in plain.split("/"))


def _hosts_of(servers: Iterable[ServerRule]) -> Iterable[str]:
    for rule in servers:
        host = urlsplit(rule.url).hostname
        if host:
            yield normal_host(host)
