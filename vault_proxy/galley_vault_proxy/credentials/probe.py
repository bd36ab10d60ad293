"""Trying an MCP server with a token: is it let in? Speaks both protocol eras, as little of them as tells."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

import httpx2

from galley_vault_proxy.errors import Unreachable
from galley_vault_proxy.secret import Secret

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
_MODERN_ERRORS: Final = frozenset({-32020, -32021, -32022})
_CLIENT: Final = {"name": "galley-vault-proxy", "version": "1"}

Verdict: TypeAlias = Literal["in", "refused", "broken"]


class Answered(Protocol):
    """An HTTP answer."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> httpx2.Headers: ...
    @property
    def body(self) -> bytes: ...
    @property
    def media_type(self) -> str: ...


class Sender(Protocol):
    """Sends one request to the outside. Raises AddressRefused, Unreachable."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered: ...

    async def delete(self, url: str, headers: Mapping[str, str]) -> Answered: ...


@dataclass(frozen=True, slots=True)
class Probe:
    """`method` is the step that failed. `answer` None: there was no HTTP answer to it."""

    method: str | None
    answer: Answered | None

    @property
    def let_in(self) -> bool:
        return self.method is None

    @property
    def status(self) -> int | None:
        return None if self.answer is None else self.answer.status


_IN: Final = Probe(None, None)


async def probe(sender: Sender, url: str, token: Secret) -> Probe:
    """Ask for the server's tools, as a client of its era would. Raises AddressRefused."""
    try:
        found = await _modern(sender, url, token)
        return await _legacy(sender, url, token) if found is None else found
    except _Failed as failed:
        return Probe(failed.method, failed.answer)


class _Failed(Exception):
    def __init__(self, method: str, answer: Answered | None) -> None:
        super().__init__(method)
        self.method = method
        self.answer = answer


async def _modern(sender: Sender, url: str, token: Secret) -> Probe | None:
    """None: this server does not speak the modern protocol."""
    answer = await _call(sender, url, token, 1, "server/discover", _modern_headers("server/discover"), modern=True)
    if answer.status in (401, 403):
        return Probe("server/discover", answer)
    message = _message(answer, 1)
    if message is None or not ("result" in message or _code(message) in _MODERN_ERRORS):
        return None
    if "result" in message:
        await _tools(sender, url, token, _modern_headers("tools/list"), modern=True)
        return _IN
    # It is of that era, and wants another version or capability: it let us in far enough to say so.
    return _IN


async def _legacy(sender: Sender, url: str, token: Secret) -> Probe:
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": _CLIENT}
    answer = await _call(sender, url, token, 2, "initialize", {}, params=params)
    message = _message(answer, 2)
    if message is None or "result" not in message:
        return Probe("initialize", answer)
    result = message["result"]
    version = result.get("protocolVersion") if isinstance(result, dict) else None
    headers = {"mcp-protocol-version": version if isinstance(version, str) and version.isascii() else LEGACY}
    session = answer.headers.get("mcp-session-id")
    if session:
        headers["mcp-session-id"] = str(session)
    try:
        note = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        await _post(sender, url, token, "notifications/initialized", headers, note)
        await _tools(sender, url, token, headers, modern=False)
    finally:
        if session:
            await _end(sender, url, token, headers)
    return _IN


async def _tools(sender: Sender, url: str, token: Secret, headers: Mapping[str, str], *, modern: bool) -> None:
    """Some servers greet everybody and ask for the token only here. One that has no tools says so, and that is fine."""
    answer = await _call(sender, url, token, 3, "tools/list", headers, modern=modern)
    if not 200 <= answer.status < 300:
        raise _Failed("tools/list", answer)


async def _call(
    sender: Sender,
    url: str,
    token: Secret,
    number: int,
    method: str,
    headers: Mapping[str, str],
    *,
    params: Mapping[str, object] | None = None,
    modern: bool = False,
) -> Answered:
    given = dict(params or {})
    if modern:
        prefix = "io.modelcontextprotocol/"
        given["_meta"] = {
            f"{prefix}protocolVersion": MODERN,
            f"{prefix}clientInfo": _CLIENT,
            f"{prefix}clientCapabilities": {},
        }
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": given}).encode()
    return await _post(sender, url, token, method, headers, body)


async def _post(
    sender: Sender, url: str, token: Secret, method: str, headers: Mapping[str, str], body: bytes
) -> Answered:
    try:
        return await sender.post(url, {**_base(token), **headers}, body)
    except Unreachable:
        raise _Failed(method, None) from None


async def _end(sender: Sender, url: str, token: Secret, headers: Mapping[str, str]) -> None:
    """Give the session back; many servers cannot take it, and that is their affair."""
    try:
        await sender.delete(url, {**_base(token), **headers})
    except Unreachable:
        return


def _base(token: Secret) -> dict[str, str]:
    return {
        "authorization": f"Bearer {token.reveal()}",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
    }


def _modern_headers(method: str) -> dict[str, str]:
    return {"mcp-protocol-version": MODERN, "mcp-method": method}


def complete(body: bytes) -> bool:
    """Whether an event stream has brought an answer: what comes after is not waited for."""
    return _event(body) is not None


def _message(answer: Answered, number: int) -> dict[str, object] | None:
    """The JSON-RPC answer in an HTTP answer, whatever its status."""
    if answer.media_type == "text/event-stream":
        return _event(answer.body)
    return _object(answer.body, number)


def _event(body: bytes) -> dict[str, object] | None:
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        found = _object(b"\n".join(lines), None)
        if found is not None:
            return found
    return None


def _object(raw: bytes, number: int | None) -> dict[str, object] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not ("result" in found or "error" in found):
        return None
    return found if number is None or found.get("id") in (number, None) else None


def _code(message: Mapping[str, object]) -> object:
    error = message.get("error")
    return error.get("code") if isinstance(error, Mapping) else None
