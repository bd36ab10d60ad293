"""The requests that come in on a stream, one after another, and their answers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

import h11

from galley_vault_proxy.egress.head import MAX_HEAD, BadRequest, Headers, HeadTooLarge, check_framing, check_lines
from galley_vault_proxy.egress.stream import Stream
from galley_vault_proxy.errors import GrantRefused, RateLimited, RequestError

HEAD_S: Final = 20.0
KEPT_S: Final = 120.0
BODY_IDLE_S: Final = 120.0
_LINGER_S: Final = 1.0
_LINGER: Final = 1 << 20
_END: Final = b"\r\n\r\n"


class HeadTooSlow(RequestError):
    status = 408
    type = "invalid_request_error"


class Request:
    """One request. Its body is read with `pieces`, at most once; then, or before, it is answered."""

    def __init__(self, stream: Stream, connection: h11.Connection, head: h11.Request, rest: bytes) -> None:
        self._stream = stream
        self._connection = connection
        self._rest = rest
        self.method = head.method.decode()
        self.target = head.target.decode()
        self.headers: Headers = list(head.headers)
        self.raw_headers: Headers = list(head.headers.raw_items())
        self.http_1_0 = head.http_version == b"1.0"
        self.trailers: Headers = []
        self.answered = False
        self._is_read = False

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def length(self) -> int | None:
        """What Content-Length says; None: the body is chunked, or there is none."""
        text = self.header(b"content-length")
        return None if text is None else int(text)

    @property
    def has_body(self) -> bool:
        return self.header(b"transfer-encoding") is not None or bool(self.length)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises BadRequest when it breaks off or is malformed, OSError."""
        connection = self._connection
        while not self._is_read:
            try:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    async with asyncio.timeout(BODY_IDLE_S):
                        data = self._rest or await self._stream.read()
                    self._rest = b""
                    connection.receive_data(data)
                    continue
            except h11.RemoteProtocolError as error:
                raise BadRequest(f"the request's body is malformed: {error}", error_code="malformed_request") from None
            except TimeoutError:
                raise HeadTooSlow("the request's body does not go on", error_code="too_slow") from None
            match event:
                case h11.Data(data=data):
                    yield bytes(data)
                case h11.EndOfMessage(headers=trailers):
                    self.trailers = list(trailers.raw_items())
                    self._is_read = True
                case _:
                    raise BadRequest("the request's body breaks off", error_code="malformed_request")

    async def inform(self, status: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """An answer before the answer, as 100 or 103. Old clients know none."""
        if not self.http_1_0:
            await self._send(h11.InformationalResponse(status_code=status, headers=list(headers)))

    async def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], reason: bytes = b"") -> None:
        self.answered = True
        await self._send(h11.Response(status_code=status, headers=list(headers), reason=reason))

    async def send(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def finish(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        # Trailers fit only behind a chunked body; h11 says so by refusing them elsewhere.
        try:
            data = self._connection.send(h11.EndOfMessage(headers=list(trailers)))
        except h11.LocalProtocolError:
            data = self._connection.send(h11.EndOfMessage())
        if data:
            await self._stream.write(data)

    async def switch(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Answer 101; return what the client has sent after its request."""
        self.answered = True
        await self._send(h11.InformationalResponse(status_code=101, headers=list(headers)))
        return self._unread()

    async def accept(self) -> bytes:
        """Answer a CONNECT with yes; return what the client has sent after it."""
        self.answered = True
        await self._stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return self._rest

    async def refuse(self, error: RequestError) -> None:
        """Say no in plain text and, unless an answer has begun, politely; the connection is of no more use."""
        if self.answered:
            return
        body = (error.message + "\n").encode()
        headers: Headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if isinstance(error, GrantRefused):
            headers.append((b"proxy-authenticate", b'Basic realm="galley egress"'))
            headers.append((b"proxy-authenticate", b'Bearer realm="galley egress"'))
        if isinstance(error, RateLimited):
            headers.append((b"retry-after", str(error.retry_after).encode()))
        await self.answer(407 if isinstance(error, GrantRefused) else error.status, headers)
        if self.method != "HEAD":
            await self.send(body)
        await self.finish()

    def rest(self) -> bytes | None:
        """When all is said: what belongs to the next request. None: there can be no next one."""
        if self._connection.our_state is not h11.DONE or self._connection.their_state is not h11.DONE:
            return None
        return self._unread()

    def _unread(self) -> bytes:
        return self._connection.trailing_data[0] + self._rest

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.write(data)


class Requests:
    """Reads heads. `first`: what was read of the stream already."""

    def __init__(self, stream: Stream, first: bytes = b"") -> None:
        self._stream = stream
        self._held = first

    async def next(self, *, within_s: float = KEPT_S) -> Request | None:
        """The next request; None at the end, or when none begins in time.

        Raises RequestError when what comes cannot be understood, OSError.
        """
        if not self._held:
            try:
                async with asyncio.timeout(within_s):
                    self._held = await self._stream.read()
            except TimeoutError:
                return None
            if not self._held:
                return None
        try:
            async with asyncio.timeout(HEAD_S):
                raw = await self._head()
        except TimeoutError:
            raise HeadTooSlow("the request's head did not arrive in time", error_code="too_slow") from None
        check_lines(raw)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        connection.receive_data(raw)
        try:
            head = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(f"the request is refused: {error}", error_code="malformed_request") from None
        if not isinstance(head, h11.Request):
            raise BadRequest("the request is refused: it has no head", error_code="malformed_request")
        check_framing(list(head.headers), http_1_0=head.http_version == b"1.0")
        rest, self._held = self._held, b""
        return Request(self._stream, connection, head, rest)

    def go_on(self, rest: bytes) -> None:
        """With what `Request.rest` gave back."""
        self._held = rest

    async def _head(self) -> bytes:
        held = bytearray(self._held)
        searched = 0
        while (end := held.find(_END, searched)) < 0:
            if len(held) > MAX_HEAD:
                raise HeadTooLarge(f"the request's head is larger than {MAX_HEAD} bytes", error_code="head_too_large")
            searched = max(0, len(held) - len(_END))
            data = await self._stream.read()
            if not data:
                raise BadRequest("the request's head is cut off", error_code="malformed_request")
            held += data
        end += len(_END)
        if end > MAX_HEAD:
            raise HeadTooLarge(f"the request's head is larger than {MAX_HEAD} bytes", error_code="head_too_large")
        self._held = bytes(held[end:])
        return bytes(held[:end])


async def linger(stream: Stream) -> None:
    """End the stream so that the last answer is read: closing with bytes unread would take it back."""
    read = 0
    with suppress(OSError):
        await stream.end()
        async with asyncio.timeout(_LINGER_S):
            while read < _LINGER and (data := await stream.read()):
                read += len(data)


async def refuse_unread(stream: Stream, error: RequestError) -> None:
    """Say no to what was no request at all."""
    body = (error.message + "\n").encode()
    head = f"HTTP/1.1 {error.status} Refused\r\ncontent-type: text/plain; charset=utf-8\r\n"
    await stream.write(head.encode() + b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))
