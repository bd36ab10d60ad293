"""Who may talk to `/mcp`, judged by a request's headers alone. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from mcp_types import INVALID_REQUEST, RequestId
from starlette.datastructures import Headers
from starlette.responses import Response

from galley_server.mcp.lines import error_line
from galley_server.secret import Secret

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_METHODS = ("POST", "GET", "DELETE")


@dataclass(frozen=True, slots=True)
class Denied:
    """An answer in a form that MCP clients understand: an HTTP status and a JSON-RPC error."""

    status: int
    message: str
    code: int = INVALID_REQUEST
    id: RequestId | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        body = error_line(self.id, self.code, self.message)
        return Response(body, self.status, self.headers, media_type="application/json")


@dataclass(frozen=True, slots=True)
class Gate:
    """The API key, and the hosts and origins that a browser may have been led to us by.

    `hosts` None means any: a server bound to a public address without a list of names cannot know what it is called,
    and the key, which no browser sends by itself, still stands in front.
    """

    api_key: Secret
    hosts: frozenset[str] | None = LOOPBACK
    origins: frozenset[str] = frozenset()

    @classmethod
    def for_bind(cls, host: str, api_key: Secret, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> Self:
        """The gate of a server that listens on `host` and is also known by the names `hosts`."""
        named = frozenset(name.lower() for name in hosts)
        known = named | LOOPBACK if named or host in LOOPBACK else None
        return cls(api_key, known, frozenset(origins))

    def check(self, method: str, headers: Headers) -> Denied | None:
        """What is wrong with a request of these headers, if anything."""
        host = _host_name(headers.get("host", ""))
        if host is None or (self.hosts is not None and host not in self.hosts):
            return Denied(421, "This server is not known by the name in the Host header.")
        if not self._may_come_from(headers.get("origin"), host):
            return Denied(403, "Requests from this Origin are not allowed.")
        if not self._holds_key(headers):
            return _unauthorized(missing="authorization" not in headers and "x-api-key" not in headers)
        if method not in _METHODS:
            return Denied(405, f"{method} is not served here.", headers={"Allow": ", ".join(_METHODS)})
        return None

    def _may_come_from(self, origin: str | None, host: str) -> bool:
        if origin is None or origin in self.origins:
            return True
        scheme, _, rest = origin.partition("://")
        name = _host_name(rest) if scheme in ("http", "https") else None
        return name is not None and (name == host or (name in LOOPBACK and host in LOOPBACK))

    def _holds_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        candidate = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return bool(candidate) and self.api_key.matches(candidate)


def _unauthorized(*, missing: bool) -> Denied:
    # No resource_metadata: there is no authorization server behind this key, and a client must not go looking for one.
    challenge = 'Bearer realm="galley"' if missing else 'Bearer realm="galley", error="invalid_token"'
    problem = "No API key was sent" if missing else "The API key is wrong"
    advice = "send GALLEY_API_KEY of the server as Authorization: Bearer KEY or x-api-key: KEY."
    return Denied(401, f"{problem}: {advice}", headers={"WWW-Authenticate": challenge})


def _host_name(host: str) -> str | None:
    """The name in `name`, `name:port` or `[v6]:port`, in lower case; None for anything else."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises on a port that is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None
