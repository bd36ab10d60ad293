"""What a grant allows, and the token that carries it: a chain of HMACs. Pure, no I/O, no clock.

    galley1.<root>[.<caveat>]*.<signature>

The root is the whole grant. Its signature is HMAC(key, root); a caveat turns the signature into HMAC(signature,
caveat). So whoever holds a token can append a caveat without a key, and nobody can take one away, change one or put
them in another order: that would need the signature before it, which a token does not carry. Every caveat only takes
something from what stood before it, so a longer token never allows more.

The signature covers the text of each part and not what it decodes to: there is one spelling of every token.
"""

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, assert_never

from galley_vault_proxy.errors import GrantRefused, InvalidRequest
from galley_vault_proxy.presets import Preset

Network: TypeAlias = Literal["limited", "unrestricted"]

PREFIX: Final = "galley1."
MAX_TOKEN: Final = 16_384
MAX_CAVEATS: Final = 32
_SHAPE: Final = re.compile(r"galley1((?:\.[A-Za-z0-9_-]+){2,})", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class ServerRule:
    """One MCP server. `tools` None allows everything it offers; a set allows these tools and nothing beside tools.

    `without`: tools taken away from it. Where some were, nothing beside tools is left either.
    """

    name: str
    url: str
    tools: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    @property
    def everything(self) -> bool:
        """Whether all that the server offers may be used, its resources and prompts too."""
        return self.tools is None and not self.without

    def allows(self, tool: str) -> bool:
        return (self.tools is None or tool in self.tools) and tool not in self.without


@dataclass(frozen=True, slots=True)
class HostRule:
    """One host or `*.domain`, in its normal spelling. None leaves that part free; of ports, `limited` opens 80 and 443.

    Methods are in upper case. A path is a prefix that ends at a segment's border: `/repos` allows `/repos` and
    `/repos/x`, not `/reposition`.
    """

    host: str
    ports: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None

    @property
    def inspected(self) -> bool:
        """Whether the rule can only be kept by reading the requests."""
        return self.methods is not None or self.paths is not None


@dataclass(frozen=True, slots=True)
class Grant:
    """What one token allows, after every narrowing. `expires_at` is in UTC and in whole milliseconds."""

    id: str
    session_id: str
    expires_at: datetime
    thread_id: str | None = None
    vault_ids: tuple[str, ...] = ()
    servers: tuple[ServerRule, ...] = ()
    hosts: tuple[HostRule, ...] = ()
    presets: tuple[Preset, ...] = ()
    network: Network = "limited"
    tunnel: str | None = None

    def server(self, name: str) -> ServerRule | None:
        for rule in self.servers:
            if rule.name == name:
                return rule
        return None


@dataclass(frozen=True, slots=True)
class OnlyServers:
    """Of the servers, only these."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class OnlyTools:
    """Of the tools, only these: of one server, or of every server when `server` is None."""

    tools: frozenset[str]
    server: str | None = None


@dataclass(frozen=True, slots=True)
class WithoutTools:
    """Of the tools, not these: of one server, or of every server when `server` is None."""

    tools: frozenset[str]
    server: str | None = None


@dataclass(frozen=True, slots=True)
class NotAfter:
    at: datetime


Caveat: TypeAlias = OnlyServers | OnlyTools | WithoutTools | NotAfter


def mint(key: bytes, grant: Grant) -> str:
    """Return the token of a grant. Raises InvalidRequest if it does not fit into a header."""
    root = _encode(_root(grant))
    token = f"{PREFIX}{root}.{_seal(key, root)}"
    for rule in grant.servers:
        if rule.without:
            token = append(token, WithoutTools(rule.without, rule.name))
    if len(token) > MAX_TOKEN:
        raise InvalidRequest(
            f"the grant is too large for a token ({len(token)} characters, at most {MAX_TOKEN}): "
            "name fewer tools, hosts or servers"
        )
    return token


def verify(key: bytes, token: str, *, now: datetime) -> Grant:
    """Return what the token allows. Raises GrantRefused. Whether the grant still lives, the registry knows."""
    root, caveats, signature = split(token)
    seal = _seal(key, root)
    for caveat in caveats:
        seal = _chain(seal, caveat)
    if not hmac.compare_digest(seal, signature):
        raise GrantRefused("forged")
    # Only now is anything parsed: the root is ours. The caveats are whoever's who held the token.
    grant = _grant(_json(root))
    for caveat in caveats:
        grant = apply(grant, _caveat(_json(caveat)))
    if now >= grant.expires_at:
        raise GrantRefused("expired")
    return grant


def append(token: str, caveat: Caveat) -> str:
    """Return the token with one more caveat. Needs no key. Raises GrantRefused if this is no token."""
    root, caveats, signature = split(token)
    text = _encode(_plain(caveat))
    longer = ".".join([PREFIX + root, *caveats, text, _chain(signature, text)])
    if len(longer) > MAX_TOKEN or len(caveats) >= MAX_CAVEATS:
        raise GrantRefused("malformed")
    return longer


def apply(grant: Grant, caveat: Caveat) -> Grant:
    """What is left of a grant under a caveat: never more than before."""
    match caveat:
        case OnlyServers(names=names):
            return replace(grant, servers=tuple(rule for rule in grant.servers if rule.name in names))
        case OnlyTools(server=server, tools=tools):
            return replace(
                grant,
                servers=tuple(
                    _fewer(rule, tools) if server is None or rule.name == server else rule for rule in grant.servers
                ),
            )
        case WithoutTools(server=server, tools=tools):
            return replace(
                grant,
                servers=tuple(
                    replace(rule, without=rule.without | tools) if server is None or rule.name == server else rule
                    for rule in grant.servers
                ),
            )
        case NotAfter(at=at):
            return replace(grant, expires_at=min(grant.expires_at, at))
        case _:
            assert_never(caveat)


def read(token: str) -> Grant:
    """What a token says it allows, unverified: for its holder to look at, never to decide on."""
    root, caveats, _ = split(token)
    grant = _grant(_json(root))
    for caveat in caveats:
        grant = apply(grant, _caveat(_json(caveat)))
    return grant


def split(token: str) -> tuple[str, list[str], str]:
    """Return root, caveats and signature, as text."""
    found = _SHAPE.fullmatch(token) if len(token) <= MAX_TOKEN else None
    if found is None:
        raise GrantRefused("malformed")
    _, root, *caveats, signature = found[1].split(".")
    if len(caveats) > MAX_CAVEATS:
        raise GrantRefused("malformed")
    return root, caveats, signature


def milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND


def moment(milliseconds: int) -> datetime:
    return _EPOCH + milliseconds * _MILLISECOND


def _seal(key: bytes, root: str) -> str:
    return _text(hmac.digest(key, f"{PREFIX}{root}".encode(), "sha256"))


def _chain(signature: str, caveat: str) -> str:
    return _text(hmac.digest(signature.encode(), caveat.encode(), "sha256"))


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _encode(value: object) -> str:
    return _text(json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode())


def _json(part: str) -> Any:
    """The value of a part, if it is written as `_encode` writes it."""
    try:
        value = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        canonical = _encode(value) == part
    except (ValueError, RecursionError):
        canonical = False
    if not canonical:
        raise GrantRefused("malformed")
    return value


def _fewer(rule: ServerRule, tools: frozenset[str]) -> ServerRule:
    return replace(rule, tools=tools if rule.tools is None else rule.tools & tools)


def _root(grant: Grant) -> Mapping[str, object]:
    return {
        "id": grant.id,
        "session": grant.session_id,
        "thread": grant.thread_id,
        "vaults": grant.vault_ids,
        "servers": [
            [rule.name, rule.url, None if rule.tools is None else sorted(rule.tools)] for rule in grant.servers
        ],
        "hosts": [[rule.host, rule.ports, rule.methods, rule.paths] for rule in grant.hosts],
        "presets": grant.presets,
        "network": grant.network,
        "expires": milliseconds(grant.expires_at),
        "tunnel": grant.tunnel,
    }


def _grant(root: Any) -> Grant:
    try:
        return Grant(
            id=root["id"],
            session_id=root["session"],
            thread_id=root["thread"],
            vault_ids=tuple(root["vaults"]),
            servers=tuple(
                ServerRule(name, url, None if tools is None else frozenset(tools))
                for name, url, tools in root["servers"]
            ),
            hosts=tuple(
                HostRule(host, _tuple(ports), _tuple(methods), _tuple(paths))
                for host, ports, methods, paths in root["hosts"]
            ),
            presets=tuple(root["presets"]),
            network=root["network"],
            expires_at=moment(root["expires"]),
            tunnel=root["tunnel"],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise GrantRefused("malformed") from None


def _tuple(items: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if items is None else tuple(items)


def _plain(caveat: Caveat) -> Mapping[str, object]:
    match caveat:
        case OnlyServers(names=names):
            return {"servers": sorted(names)}
        case OnlyTools(server=server, tools=tools):
            return {"tools": sorted(tools), "of": server}
        case WithoutTools(server=server, tools=tools):
            return {"without": sorted(tools), "of": server}
        case NotAfter(at=at):
            return {"expires": milliseconds(at)}
        case _:
            assert_never(caveat)


def _caveat(value: Any) -> Caveat:
    """Read what a stranger may have written: what is not exactly a caveat makes the whole token worthless."""
    match value:
        case {"servers": list(names), **rest} if not rest and _names(names):
            return OnlyServers(frozenset(names))
        case {"tools": list(tools), "of": str() | None as server, **rest} if not rest and _names(tools):
            return OnlyTools(frozenset(tools), server)
        case {"without": list(tools), "of": str() | None as server, **rest} if not rest and _names(tools):
            return WithoutTools(frozenset(tools), server)
        case {"expires": int(at), **rest} if not rest and not isinstance(at, bool) and 0 <= at < 1 << 47:
            return NotAfter(moment(at))
        case _:
            raise GrantRefused("malformed")


def _names(items: Sequence[object]) -> bool:
    return all(isinstance(item, str) for item in items)
