"""Narrowing a token for somebody else, by whoever holds it: no key, no network, no settings."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.grant.token import Caveat, Grant, NotAfter, OnlyServers, OnlyTools, WithoutTools, append, read


def narrow(
    token: str,
    *,
    servers: Collection[str] | None = None,
    tools: Collection[str] | Mapping[str, Collection[str]] | None = None,
    without: Collection[str] | Mapping[str, Collection[str]] | None = None,
    expires_in: float | None = None,
    now: datetime | None = None,
) -> str:
    """Return a token that allows a part of what `token` allows, and never more.

    `servers`: keep only these MCP servers. `tools`: keep only these tools, of every server; or a mapping from a
    server to the tools kept of it. `without`: take these tools away, in the same two forms, and with them all that a
    server offers beside tools. `expires_in`: seconds from now. What is None stays as it is.

    Raises InvalidRequest if a name is not in the token (a typing error must not give a token that opens nothing),
    GrantRefused if `token` is no grant.
    """
    given = read(token)
    caveats = [
        *_only_servers(given, servers),
        *_only_tools(given, tools),
        *_without_tools(given, without),
        *_sooner(expires_in, now or datetime.now(UTC)),
    ]
    if not caveats:
        raise InvalidRequest("nothing to narrow: name servers, tools or a shorter life")
    for caveat in caveats:
        token = append(token, caveat)
    return token


def _only_servers(given: Grant, servers: Collection[str] | None) -> list[Caveat]:
    if servers is None:
        return []
    _require_known(given, _listed(servers, "servers"))
    return [OnlyServers(frozenset(servers))]


def _only_tools(given: Grant, tools: Collection[str] | Mapping[str, Collection[str]] | None) -> list[Caveat]:
    if tools is None:
        return []
    if isinstance(tools, Mapping):
        _require_known(given, tools)
        return [OnlyTools(frozenset(_listed(names, "tools")), server) for server, names in tools.items()]
    return [OnlyTools(frozenset(_listed(tools, "tools")))]


def _without_tools(given: Grant, without: Collection[str] | Mapping[str, Collection[str]] | None) -> list[Caveat]:
    if without is None:
        return []
    if isinstance(without, Mapping):
        _require_known(given, without)
        return [WithoutTools(frozenset(_listed(names, "without")), server) for server, names in without.items()]
    return [WithoutTools(frozenset(_listed(without, "without")))]


def _sooner(expires_in: float | None, now: datetime) -> list[Caveat]:
    if expires_in is None:
        return []
    if not 0 < expires_in <= 10 * 365 * 86_400:
        raise InvalidRequest(f"expires_in: {expires_in:g} is not a number of seconds from now")
    return [NotAfter(now + timedelta(seconds=expires_in))]


def _listed(names: Collection[str], what: str) -> Collection[str]:
    # A single string is a collection too: of its letters.
    if isinstance(names, str):
        raise InvalidRequest(f"{what}: give a list of names, not one string")
    return names


def _require_known(given: Grant, names: Collection[str]) -> None:
    for name in names:
        if given.server(name) is None:
            known = ", ".join(rule.name for rule in given.servers) or "none"
            raise InvalidRequest(f"the token has no server {name!r}; it has: {known}")
