"""`/mcp`: the streamable-HTTP endpoint in both protocol eras. A gate in front of the SDK's session manager.

What reaches the SDK is authenticated, from an allowed host and origin, within the size limit, and one well-formed
JSON-RPC message. This module also does what the SDK leaves open: it bounds the abandoned sessions and ends streams.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import HEADER_MISMATCH, INTERNAL_ERROR, JSONRPCMessage, JSONRPCRequest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from galley_server.mcp.exchange import Exchange
from galley_server.mcp.gate import Denied, Gate
from galley_server.mcp.lines import MAX_CLIENT_LINE, too_long_message
from galley_server.mcp.server import SHUTTING_DOWN, close_listen_streams, is_modern
from galley_server.mcp.sessions import SessionBook
from galley_server.mcp.strict import Refusal, read_message

MAX_SESSIONS = 512
SESSION_IDLE_S = 30 * 60.0
_BODY_S = 30.0
_HEARD_OUT = 4 * MAX_CLIENT_LINE
_NO_SESSION = "The Mcp-Session-Id header is missing: send initialize first."
_SESSION_HEADER = "mcp-session-id"
_VERSION_HEADER = "mcp-protocol-version"

_log = logging.getLogger(__name__)


class HTTPEndpoint:
    """An ASGI app. The host enters `running` in its lifespan, and awaits `close` before it waits for connections."""

    def __init__(
        self,
        server: MCPServer[Any],
        gate: Gate,
        *,
        max_sessions: int = MAX_SESSIONS,
        session_idle_s: float = SESSION_IDLE_S,
    ) -> None:
        self._server = server
        self._gate = gate
        # The app itself is not used: its route would redirect /mcp/ and its own checks answer less clearly than ours.
        server.streamable_http_app(
            max_request_body_size=MAX_CLIENT_LINE,
            # Room beside our own limit for a session that is being evicted while its successor opens.
            max_sessions=max_sessions + 16,
            session_idle_timeout=session_idle_s,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self._manager = server.session_manager
        self._sessions = SessionBook(max_sessions, session_idle_s)
        self._exchanges: set[Exchange] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closing = False

    @property
    def sessions(self) -> int:
        """How many handshake-era sessions are open."""
        return len(self._sessions)

    def routes(self) -> list[BaseRoute]:
        """For the host's router. Both spellings are served where they are: not every client follows a redirect."""
        return [Route("/mcp", endpoint=self), Route("/mcp/", endpoint=self)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._manager.run():
            yield

    async def close(self, grace_s: float = 0.3) -> None:
        """End every stream, so that a shutdown need not wait for clients: listen and GET streams at once, calls
        after `grace_s` with an error that says so. Requests from now on are answered 503."""
        self._closing = True
        close_listen_streams(self._server)
        for exchange in self._exchanges:
            if exchange.request_id is None:
                exchange.cancel()
        with anyio.move_on_after(grace_s):
            await self._quiet.wait()
        for exchange in self._exchanges:
            exchange.cancel()
        with anyio.move_on_after(grace_s):
            await self._quiet.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # RFC 9110, 5.5: blanks around a value are no part of it; not every HTTP parser takes them off.
        stripped = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        request = Request({**scope, "headers": stripped}, receive)
        denied = self._gate.check(request.method, request.headers)
        if denied is None and self._closing:
            denied = Denied(503, SHUTTING_DOWN, INTERNAL_ERROR, headers={"Retry-After": "1"})
        if denied is None:
            handle = self._post if request.method == "POST" else self._legacy_stream
            denied = await handle(request, send)
        if denied is not None:
            await denied.response()(scope, receive, send)

    async def _post(self, request: Request, send: Send) -> Denied | None:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Denied(415, "Content-Type must be application/json.")
        try:
            body = await _body(request)
            message = read_message(body)
        except ClientDisconnect:
            return None
        except TimeoutError:
            return Denied(408, f"The request's body did not arrive within {_BODY_S:.0f} s.")
        except _TooLarge:
            return Denied(413, too_long_message(MAX_CLIENT_LINE, "client"), headers={"Connection": "close"})
        except Refusal as refusal:
            return Denied(400, refusal.message, refusal.code, refusal.id)
        denied = await self._admit(request.headers, message)
        if denied is None:
            await self._serve(request, message, _replay(body, request.receive), send)
        return denied

    async def _legacy_stream(self, request: Request, send: Send) -> Denied | None:
        """GET and DELETE: only sessions of the handshake era have them."""
        if not _is_legacy(request.headers):
            return Denied(405, "This protocol version has no sessions.", headers={"Allow": "POST"})
        if _SESSION_HEADER not in request.headers:
            # Not 400: clients probe with a bare GET, and take only 405 for "there is no such stream, go on without".
            advice = "There is no stream outside a session: POST initialize first."
            return Denied(405, advice, headers={"Allow": "POST"})
        await self._serve(request, None, request.receive, send)
        return None

    async def _admit(self, headers: Headers, message: JSONRPCMessage) -> Denied | None:
        """Whether a handshake-era message has the session it needs. The modern era has none, and the SDK checks it."""
        if not _is_legacy(headers):
            return None
        id_ = message.id if isinstance(message, JSONRPCRequest) else None
        session_id = headers.get(_SESSION_HEADER)
        if session_id is not None:
            if id_ is not None and self._sessions.answering(session_id, id_):
                return Denied(400, "A request with this id is still waiting for its answer.", id=id_)
            return None
        if not isinstance(message, JSONRPCRequest):
            return Denied(400, _NO_SESSION)
        if message.method == "initialize":
            return await self._make_room(message)
        if is_modern(message.params):
            return Denied(400, "The MCP-Protocol-Version header is missing.", HEADER_MISMATCH, id_)
        return Denied(400, _NO_SESSION, id=id_)

    async def _make_room(self, message: JSONRPCRequest) -> Denied | None:
        now = time.monotonic()
        self._sessions.forget_idle(now)
        if not self._sessions.full:
            return None
        victim = self._sessions.victim(now)
        if victim is None:
            crowded = f"{len(self._sessions)} MCP sessions are in use. End one, or try again later."
            return Denied(503, crowded, INTERNAL_ERROR, message.id, {"Retry-After": "30"})
        _log.info("ending the MCP session that was idle for longest: the limit is reached")
        await self._end_session(victim)
        return None

    async def _serve(self, request: Request, message: JSONRPCMessage | None, receive: Receive, send: Send) -> None:
        id_ = message.id if isinstance(message, JSONRPCRequest) else None
        session_id = request.headers.get(_SESSION_HEADER)

        def note_session(status: int, headers: Headers) -> None:
            opened = headers.get(_SESSION_HEADER)
            if session_id is None and opened is not None and status < 400:
                self._sessions.opened(opened, time.monotonic())
            elif session_id is not None and (status == 404 or (request.method == "DELETE" and status < 300)):
                self._sessions.ended(session_id)

        exchange = Exchange(id_, send, note_session)
        self._exchanges.add(exchange)
        self._quiet.clear()
        try:
            with self._sessions.using(session_id, id_, time.monotonic):
                with exchange.scope:
                    await self._manager.handle_request(request.scope, receive, exchange.send)
                await exchange.finish(SHUTTING_DOWN)
        finally:
            self._exchanges.discard(exchange)
            if not self._exchanges:
                self._quiet.set()

    async def _end_session(self, session_id: str) -> None:
        """As if its client had sent DELETE: the SDK has no other public way."""
        self._sessions.ended(session_id)
        scope: Scope = {
            "type": "http",
            "method": "DELETE",
            "path": "/mcp",
            "query_string": b"",
            "headers": [(_SESSION_HEADER.encode(), session_id.encode("latin-1"))],
        }
        await self._manager.handle_request(scope, _nothing, _nowhere)


class _TooLarge(Exception):
    pass


async def _body(request: Request) -> bytes:
    body = bytearray()
    size = 0
    async with asyncio.timeout(_BODY_S):
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_CLIENT_LINE:
                body.clear()
            else:
                body += chunk
            # A client that is still sending when the connection closes never sees the answer: listen a while longer.
            if size > _HEARD_OUT:
                raise _TooLarge
    if size > MAX_CLIENT_LINE:
        raise _TooLarge
    return bytes(body)


def _is_legacy(headers: Headers) -> bool:
    """As the SDK decides: by the header alone, whose absence means a client older than the header."""
    version = headers.get(_VERSION_HEADER)
    return version is None or version in HANDSHAKE_PROTOCOL_VERSIONS


def _replay(body: bytes, receive: Receive) -> Receive:
    read = False

    async def replayed() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _nowhere(message: Message) -> None:
    pass
