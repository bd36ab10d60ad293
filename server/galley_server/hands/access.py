"""What a session may reach, and with whose credentials: pure, from its agent and its environment.

It becomes the session's grant at the vault proxy. The brain uses all of it. The sandbox gets less: of MCP servers only
the tools that nobody has to be asked about, because a program there could call the others past the person who is asked.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from galley_server.wire.agent import AlwaysAllow, McpServer, McpToolset, SessionAgent, ToolDefault
from galley_server.wire.environment import Limited, Networking, Unrestricted

STDIO: Final = "stdio:"
"""How the URL of a server begins that the vault proxy runs itself."""

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class ToolSet:
    """Tools of one server: these, or (None) all; and not those."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        return self.only is not None and not self.only - self.without


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """One MCP server of the agent. `door`: what the MCP door calls it. `blocked`: the environment does not allow it."""

    name: str
    url: str
    door: str
    enabled: ToolSet
    unasked: ToolSet
    blocked: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """`networking` None: the sandbox has no network at all."""

    vault_ids: tuple[str, ...] = ()
    networking: Networking | None = None
    servers: tuple[ServerAccess, ...] = ()

    def server(self, name: str) -> ServerAccess | None:
        return next((server for server in self.servers if server.name == name), None)


def access_of(agent: SessionAgent, networking: Networking | None, vault_ids: Sequence[str]) -> Access:
    toolsets = {tool.mcp_server_name: tool for tool in agent.tools if isinstance(tool, McpToolset)}
    doors = door_names(server.name for server in agent.mcp_servers)
    servers = tuple(
        ServerAccess(
            name=server.name,
            url=server.url,
            door=door,
            enabled=_tools(toolsets[server.name], unasked=False),
            unasked=_tools(toolsets[server.name], unasked=True),
            blocked=_blocked(server, networking),
        )
        for server, door in zip(agent.mcp_servers, doors, strict=True)
        if server.name in toolsets
    )
    return Access(tuple(dict.fromkeys(vault_ids)), networking, servers)


def door_names(names: Iterable[str]) -> list[str]:
    """A path segment for each server, the name itself wherever that is one. Different names stay different."""
    return unlike(((name,) for name in names), _UNFIT, most=64)


def unlike(names: Iterable[tuple[str, ...]], unfit: re.Pattern[str], *, most: int) -> list[str]:
    """Each name, its parts joined by `__`, without the characters that are unfit and at most so long.

    Where two would be alike, a digest of the parts tells them apart.
    """
    found: dict[str, None] = {}
    for parts in names:
        plain = unfit.sub("_", "__".join(parts))
        if len(plain) > most or plain in found or plain in ("", ".", ".."):
            digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:8]
            plain = f"{plain[: most - 9]}_{digest}"
        found[plain] = None
    return list(found)


def host_permitted(networking: Networking | None, host: str) -> bool:
    """Whether the environment lets a sandbox reach a host by its list of hosts."""
    match networking:
        case None:
            return False
        case Unrestricted():
            return True
        case Limited(allowed_hosts=allowed):
            return any(matches(pattern, host) for pattern in allowed)


def matches(pattern: str, host: str) -> bool:
    """`*.example.com` stands for every name below `example.com`, and not for that name itself."""
    pattern, host = pattern.lower(), host.lower().rstrip(".")
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def _tools(toolset: McpToolset, *, unasked: bool) -> ToolSet:
    def taken(config: ToolDefault) -> bool:
        return config.enabled and (not unasked or isinstance(config.permission_policy, AlwaysAllow))

    named = {
        config.name: taken(ToolDefault(enabled=config.enabled, permission_policy=config.permission_policy))
        for config in toolset.configs
    }
    if taken(toolset.default_config):
        return ToolSet(without=frozenset(name for name, yes in named.items() if not yes))
    return ToolSet(only=frozenset(name for name, yes in named.items() if yes))


def _blocked(server: McpServer, networking: Networking | None) -> str | None:
    """Why the environment does not let this server be reached. One that the proxy itself runs is reached by nobody."""
    if server.url.startswith(STDIO) or not isinstance(networking, Limited) or networking.allow_mcp_servers:
        return None
    host = urlsplit(server.url).hostname or ""
    if host_permitted(networking, host):
        return None
    return (
        f"the environment's networking does not allow {host}: set allow_mcp_servers, or name the host in allowed_hosts"
    )
