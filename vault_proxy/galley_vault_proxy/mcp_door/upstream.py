"""HTTP/1.1 to MCP servers: one request at a time on a connection that stays open, with bounds on all that comes back.

A general client takes longer over a small call than everything else that the door does. Here a request leaves in one
write, and the answer is read by the parser that the door's own side uses.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from galley_vault_proxy.mcp_door.headers import RawHeaders

_HIGH_WATER: Final = 1 << 18
# Of anything that is not body: a head, chunk extensions, trailers.
_LONGEST: Final = 1 << 16
_BREAKS: Final = re.compile(rb"[\r\n\0]")


class ConnectionLost(Exception):
    """The connection to a server is gone, or what the server sends is not HTTP."""


class UnsendableHeader(Exception):
    """A header would end before its end. The message names it and does not show it."""


class Response:
    """What a server answers. `headers` have lower-case names."""

    def __init__(self, connection: "Connection", status: int, headers: RawHeaders, silence_s: float | None) -> None:
        self._connection = connection
        self._silence_s = silence_s
        self.status = status
        self.headers = headers

    def header(self, name: bytes) -> str:
        """The first of this name; empty if there is none."""
        return next((value.decode("latin-1") for known, value in self.headers if known == name), "")

    def has(self, name: bytes) -> bool:
        return any(known == name for known, _ in self.headers)

    @property
    def ended(self) -> bool:
        """Whether nothing of the body is still to come."""
        return self._connection.drained

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises ConnectionLost, and TimeoutError when the server has been silent too long."""
        return self._connection.body(self._silence_s)


class Connection(asyncio.Protocol):
    """One connection. Whoever asks on it waits for the end of the answer, or closes it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._sound = True
        self._idle: asyncio.TimerHandle | None = None
        self._send_s = 0.0
        self._unread: asyncio.TimerHandle | None = None
        self._asked = False
        # Of the answer under way.
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._held = self._beside = 0
        self._headed = self._complete = self._interim = self._until_the_end = self._grew = False

    @property
    def reusable(self) -> bool:
        """Whether the last answer has come whole, and another request may be sent."""
        return self._sound and self._complete and self._lost is None and not self._transport.is_closing()

    @property
    def drained(self) -> bool:
        return self._complete and not self._chunks

    async def ask(self, request: bytes, *, send_s: float, silence_s: float | None) -> Response:
        """Send a whole request; return when the head of the answer is there. Raises ConnectionLost, TimeoutError."""
        self._begin()
        self._asked = True
        self._send_s = send_s
        self._stop_idling()
        if self._lost is None:
            self._transport.write(request)
        while not self._headed:
            await self._more(silence_s)
        return Response(self, self._status, self._headers, silence_s)

    async def body(self, silence_s: float | None) -> AsyncGenerator[bytes, None]:
        while True:
            if self._chunks:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks = []
                if self._held > _HIGH_WATER and not self._transport.is_closing():
                    self._transport.resume_reading()
                self._held = 0
                yield data
            elif self._complete:
                return
            else:
                await self._more(silence_s)

    def idle_for(self, seconds: float) -> None:
        """Close it when it has not been asked again by then."""
        self._asked = False
        self._idle = self._loop.call_later(seconds, self.close)

    def close(self) -> None:
        self._stop_idling()
        self._sound = False
        self.resume_writing()
        # A server that does not read would keep a connection with something to send in it, and that, for ever.
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._asked or self._complete:
            # Nobody asked for it, so it belongs to nobody.
            self.close()
            return
        self._grew = False
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # What was complete before stands.
            self._fail("the server sent something that is not HTTP")
            return
        self._beside = 0 if self._grew else self._beside + len(data)
        if self._beside > _LONGEST:
            self._fail("the server's headers are too long")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_idling()
        if self._headed and self._until_the_end and exc is None:
            self._complete = True
        self._sound = False
        self._lost = self._lost or "the connection to the server was lost"
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        """The server takes its time to read what it is sent."""
        self._unread = self._loop.call_later(self._send_s, self._fail, "the server does not read what it is sent")

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def on_message_begin(self) -> None:
        if self._complete:
            self._sound = False  # a second answer to one question

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            self._headers = []
            return
        coding = [value.lower() for name, value in self._headers if name == b"transfer-encoding"]
        if coding not in ([], [b"chunked"]) or any(_BREAKS.search(value) for _, value in self._headers):
            self._fail("the server sent something that is not HTTP")
            return
        self._until_the_end = not coding and not any(name == b"content-length" for name, _ in self._headers)
        self._status = status
        self._headed = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._complete or self._lost is not None:
            return
        self._grew = True
        before = self._held
        self._held += len(body)
        self._chunks.append(body)
        if before <= _HIGH_WATER < self._held and not self._transport.is_closing():
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            return
        self._sound = self._sound and self._parser.should_keep_alive()
        self._complete = True
        self._wake()

    def _begin(self) -> None:
        self._status = 0
        self._headers = []
        self._chunks = []
        self._held = self._beside = 0
        self._headed = self._complete = self._interim = self._until_the_end = self._grew = False

    async def _more(self, silence_s: float | None) -> None:
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        waiter = self._waiter = self._loop.create_future()
        timer = None if silence_s is None else self._loop.call_later(silence_s, _too_long, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        self._lost = self._lost or why
        self.close()
        self._wake()

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


def request_of(verb: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes | None) -> bytes:
    """The bytes of a request. Raises UnsendableHeader: a line break in a value would begin another header."""
    for name, value in headers:
        if _BREAKS.search(value):
            raise UnsendableHeader(f"the header {name.decode('latin-1')} has a line break in it")
    lines = [b"%b %b HTTP/1.1" % (verb.encode(), target), *(b"%b: %b" % item for item in headers)]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body or b""))


def _too_long(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
