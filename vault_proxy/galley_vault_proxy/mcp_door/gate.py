"""What is judged by the head of a request alone: host, origin, and where the grant's token stands. No I/O."""

import ipaddress
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from galley_vault_proxy.errors import GrantRefused
from galley_vault_proxy.mcp_door.answers import Answer, refusal

METHODS: Final = "POST, GET, DELETE, OPTIONS"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
CHALLENGE: Final = (b"www-authenticate", b'Bearer realm="galley-vault-proxy", error="invalid_token"')


def known_hosts(host: str, url: str | None, names: Collection[str] = ()) -> frozenset[str] | None:
    """By which names a proxy that listens on `host` may be called; None: by any.

    On a public address without a URL it cannot know what it is called. A page in a browser that was led here all the
    same has no grant, and browsers do not send one by themselves.
    """
    own = urlsplit(url).hostname if url else None
    if own is None and not names and not _is_loopback(host):
        return None
    return frozenset({*_LOOPBACK, host.lower(), *(name.lower() for name in names), *([own] if own else [])})


def check_names(hosts: frozenset[str] | None, given: Mapping[bytes, str]) -> Answer | None:
    """What is wrong with the Host and Origin headers, if anything."""
    host = host_name(given.get(b"host", ""))
    if host is None or (hosts is not None and host not in hosts):
        return refusal(421, "this proxy is not known by the name in the Host header: set GALLEY_PROXY_URL")
    origin = given.get(b"origin")
    if origin is not None and not _same_site(origin, host):
        return refusal(403, "requests from this Origin are not allowed")
    return None


def bearer(given: Mapping[bytes, str]) -> str:
    """The token. Raises GrantRefused."""
    scheme, _, token = given.get(b"authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise GrantRefused("missing")
    return token.strip()


def cross_origin(given: Mapping[bytes, str]) -> list[tuple[bytes, bytes]]:
    """What a browser needs to see to let its page read the answer. The origin has been checked."""
    origin = given.get(b"origin")
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"mcp-session-id, mcp-protocol-version"),
        (b"vary", b"origin"),
    ]


def preflight(given: Mapping[bytes, str]) -> Answer:
    headers = [(b"allow", METHODS.encode())]
    if b"origin" in given:
        headers += [
            (b"access-control-allow-methods", METHODS.encode()),
            (
                b"access-control-allow-headers",
                b"authorization, content-type, accept, last-event-id, mcp-session-id, mcp-protocol-version, "
                b"mcp-method, mcp-name, galley-event-id",
            ),
            (b"access-control-max-age", b"600"),
        ]
    return Answer(204, None, headers)


def host_name(host: str) -> str | None:
    """The name in `name`, `name:port` or `[v6]:port`, in lower case; None for anything else."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _same_site(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    name = host_name(rest) if scheme in ("http", "https") else None
    return name is not None and (name == host or (name in _LOOPBACK and host in _LOOPBACK))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
