"""`/v1/vaults` and what else of the API the vault proxy serves: passed on to it, and its answer back, as bytes.

Nothing of a body is parsed, kept or logged here: what a client writes is a secret, and this program has no use for it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from galley_server.errors import NotFound
from galley_server.http.boundary import PAGES, Operation, Paths
from galley_server.http.call import Call
from galley_server.runtime.ports import Passage, Relay

PATHS: Final[Mapping[str, Sequence[str]]] = {
    "/v1/vaults": ("POST", "GET"),
    "/v1/vaults/{vault_id}": ("GET", "POST", "DELETE"),
    "/v1/vaults/{vault_id}/archive": ("POST",),
    "/v1/vaults/{vault_id}/credentials": ("POST", "GET"),
    "/v1/vaults/{vault_id}/credentials/{credential_id}": ("GET", "POST", "DELETE"),
    "/v1/vaults/{vault_id}/credentials/{credential_id}/archive": ("POST",),
    "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate": ("POST",),
    "/v1/oauth/logins": ("POST",),
    "/v1/oauth/logins/{login_id}": ("GET",),
    "/v1/oauth/logins/{login_id}/redirect": ("POST",),
    "/v1/audit": ("GET",),
    "/v1/mcp_pins": ("GET", "DELETE"),
}
"""What the proxy is asked by people and programs, and not by this server itself."""

_REST: Final = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_-]+)*")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ASKED: Final = (
    b"accept",
    b"accept-language",
    b"content-length",
    b"content-type",
    b"cookie",
    b"idempotency-key",
    b"origin",
    b"sec-fetch-site",
    b"user-agent",
)
_ANSWERED: Final = frozenset(
    {
        b"cache-control",
        b"content-length",
        b"content-security-policy",
        b"content-type",
        b"location",
        b"referrer-policy",
        b"retry-after",
        b"set-cookie",
        b"x-content-type-options",
        b"x-frame-options",
        b"x-should-retry",
    }
)


class VaultFace:
    """`body_limit` bounds what passes through; what a body may be, the proxy knows."""

    def __init__(self, relay: Relay, *, body_limit: int | None) -> None:
        self._relay = relay
        self._body_limit = body_limit

    def paths(self) -> Paths:
        found = {path: {method: self._operation(method, path) for method in methods} for path, methods in PATHS.items()}
        # What browsers and authorization servers ask, behind no key: so it goes to the proxy without one, too.
        pages = {method: self._operation(method, f"{PAGES}{{rest}}", trusted=False) for method in ("GET", "POST")}
        return {**found, f"{PAGES}{{rest:path}}": pages}

    def _operation(self, method: str, template: str, *, trusted: bool = True) -> Operation:
        async def handle(call: Call) -> ASGIApp:
            headers = _asked(call.raw_headers)
            bodied = "content-length" in headers or call.header(b"transfer-encoding") is not None
            passage = Passage(
                method=method,
                path=_path(template, call),
                query=call.raw_query,
                headers=headers | {"galley-request-id": call.request_id},
                body=await call.chunks(limit=self._body_limit) if bodied else None,
                trusted=trusted,
            )
            return _Answer(self._relay, passage)

        return Operation(handle, takes=None)


class _Answer:
    """The proxy's answer, sent as it comes."""

    def __init__(self, relay: Relay, passage: Passage) -> None:
        self._relay = relay
        self._passage = passage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._relay.relay(self._passage) as passed:
            headers = [(name.lower(), value) for name, value in passed.headers if name.lower() in _ANSWERED]
            await send({"type": "http.response.start", "status": passed.status, "headers": headers})
            async for chunk in passed.body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _path(template: str, call: Call) -> str:
    """The template with the client's ids, each of which is one, so that the proxy reads the path that was matched."""

    def value(match: re.Match[str]) -> str:
        found = call.param(match[1])
        if not (_REST if match[1] == "rest" else _ID).fullmatch(found):
            raise NotFound(f"{found[:80]!r} is not an id of anything here")
        return found

    return re.sub(r"\{(\w+)\}", value, template)


def _asked(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """What may be passed on: our key, and whatever stands in front of us added, is not for the proxy."""
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in _ASKED}
