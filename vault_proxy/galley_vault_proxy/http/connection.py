"""uvicorn's HTTP connection, with what a hostile client needs: a bounded head, in bounded time, and the greeting.

uvicorn with httptools takes headers of any length for as long as they come. Here a head that is too long or too slow
ends the connection before anything of the app is asked.
"""

import asyncio
import socket
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from galley_vault_proxy.errors import Unauthenticated
from galley_vault_proxy.preamble import Opening
from galley_vault_proxy.secret import Secret

TUNNEL: Final = "galley.tunnel"
"""Key in a scope's `state` of the tunnel that the connection came through; absent when it came through none."""

MAX_HEAD: Final = 64 * 1024
HEAD_S: Final = 20.0
MOST_WAITING: Final = 1024


class HeadHolding:
    """A transport that sends the head of an answer together with what follows it, if that follows at once.

    Sent by itself it wakes the client for nothing, which costs both sides more than a small answer does.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._send)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)


def connection_class(
    key: Secret, *, head_s: float = HEAD_S, most_waiting: int = MOST_WAITING
) -> type[HttpToolsProtocol]:
    """The class for one proxy's connections."""

    class Connection(GuardedConnection):
        service_key = key
        patience = head_s
        waiting = Waiting(most_waiting)

    return Connection


class Waiting:
    """The connections on which nothing is being done: no whole head has come, or the next request has not.

    Opening them costs nothing, and as many as can be had at all would shut everybody else out. So of too many the one
    that has waited longest goes: whoever has something to ask does so long before it is their turn.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._connections: dict[GuardedConnection, None] = {}

    def add(self, connection: "GuardedConnection") -> None:
        self._connections.pop(connection, None)
        self._connections[connection] = None
        if len(self._connections) > self._most:
            longest = next(iter(self._connections))
            del self._connections[longest]
            longest.transport.abort()

    def discard(self, connection: "GuardedConnection") -> None:
        self._connections.pop(connection, None)


class GuardedConnection(HttpToolsProtocol):
    service_key: Secret
    patience: float
    waiting: Waiting

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._opening: Opening | None = None
        self._in_head = False
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, HeadHolding(transport, self.loop)))
        listener = transport.get_extra_info("socket")
        if listener is not None and listener.family == socket.AF_UNIX:
            self._opening = Opening(self.service_key)
        self.waiting.add(self)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._opening is not None:
            data = self._after_greeting(self._opening, data)
            if not data:
                return
        # Counted only while a head was open before and after: a piece may hold a body or several requests.
        open_before = self._in_head
        super().data_received(data)
        if open_before and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(b"431 Request Header Fields Too Large", b"the request's head is larger than 64 KB")

    def _after_greeting(self, opening: Opening, data: bytes) -> bytes:
        try:
            rest = opening.feed(data)
        except Unauthenticated as error:
            self._refuse(b"401 Unauthorized", error.message.encode())
            return b""
        if opening.decided:
            self._opening = None
            if opening.tunnel is not None:
                self.app_state = {**self.app_state, TUNNEL: opening.tunnel}
        return rest

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        self.waiting.discard(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.waiting.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.discard(self)
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self.patience, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        self._patience = None
        self._refuse(b"408 Request Timeout", b"the request's head did not arrive in time")

    def _refuse(self, status: bytes, message: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(message), message)
        )
        self.transport.close()
