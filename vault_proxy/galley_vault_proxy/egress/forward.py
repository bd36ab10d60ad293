"""One request of a sandbox to its host, and the answer: swapped on the way out, redacted on the way in."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h11

from galley_vault_proxy.egress.coding import Coding, Identity, coding_of
from galley_vault_proxy.egress.head import Headers, Origin, asks_for_websocket, end_to_end
from galley_vault_proxy.egress.incoming import Request
from galley_vault_proxy.egress.placeholders import BodySwap, Placeholders
from galley_vault_proxy.egress.stream import Stream
from galley_vault_proxy.egress.upstream import Upstream
from galley_vault_proxy.egress.websocket import ServerFrames
from galley_vault_proxy.errors import Unreachable
from galley_vault_proxy.redact import Redactor

# The whole of a body up to here is swapped before its length is said; a longer one goes on in chunks.
SWAPPED_WHOLE: Final = 1 << 20
ANSWER_IDLE_S: Final = 900.0
_READ_NEXT: Final = (h11.NEED_DATA, h11.PAUSED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`status` of the answer; 101: the connection is a WebSocket now, `client_rest` and `upstream_rest` came early."""

    status: int
    client_rest: bytes = b""
    upstream_rest: bytes = b""


class NothingSaid(Unreachable):
    """The upstream hung up before a byte of its answer: it may have been about to when the request went out."""


class Forward:
    """Carries one request out. Use it once."""

    def __init__(
        self, request: Request, target: str, origin: Origin, upstream: Upstream, placeholders: Placeholders
    ) -> None:
        self._request = request
        self._target = target
        self._origin = origin
        self._upstream = upstream
        self._placeholders = placeholders
        self._redacts = bool(placeholders.patterns)
        self._is_websocket = asks_for_websocket(request.headers)
        self._heard = False

    async def run(self) -> Outcome:
        """Raises RequestError: if nothing was answered yet, the caller can; OSError: one of the two is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                body, headers = await self._prepared()
                await self._say(h11.Request(method=self._request.method, target=self._target, headers=headers))
                sending = tasks.create_task(self._send_body(body), name="egress-body")
                outcome = await self._receive()
                # An answer may come before all of the request went out; then the rest is not wanted.
                sending.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        return outcome

    # Out

    async def _prepared(self) -> tuple[bytes | None, Headers]:
        """The headers as they go out, and the body if it has to be swapped before its length can be said."""
        request, placeholders = self._request, self._placeholders
        placeholders.check_target(self._target)
        headers = [pair for pair in end_to_end(request.raw_headers) if pair[0].lower() != b"host"]
        headers = [(b"Host", self._origin.authority.encode()), *placeholders.headers(headers)]
        if self._is_websocket:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        if self._redacts:
            # What is compressed cannot be searched for secrets.
            headers = without(headers, b"accept-encoding", b"sec-websocket-extensions")
            headers.append((b"Accept-Encoding", b"identity"))
        if not request.has_body:
            return b"", headers
        if not placeholders.swaps_bodies or request.header(b"content-encoding") is not None:
            if request.length is None:
                headers.append((b"Transfer-Encoding", b"chunked"))
            return None, headers
        headers = without(headers, b"content-length")
        if request.length is None or request.length > SWAPPED_WHOLE:
            return None, [*headers, (b"Transfer-Encoding", b"chunked")]
        body = await self._swapped_whole()
        return body, [*without(headers, b"expect"), (b"Content-Length", str(len(body)).encode())]

    async def _swapped_whole(self) -> bytes:
        if (self._request.header(b"expect") or b"").lower() == b"100-continue":
            await self._request.inform(100)
        swap = self._swap()
        parts = [swap.feed(piece) async for piece in self._request.pieces()]
        return b"".join([*parts, swap.flush()])

    def _swap(self) -> BodySwap:
        return self._placeholders.body(self._request.header(b"content-type"))

    async def _send_body(self, body: bytes | None) -> None:
        """`body` None: as it comes from the sandbox."""
        if body is not None:
            if not body:
                async for _ in self._request.pieces():
                    pass
            await self._pass_on(body)
        elif self._request.header(b"content-encoding") is not None:
            async for piece in self._request.pieces():
                await self._pass_on(piece)
        else:
            swap = self._swap()
            async for piece in self._request.pieces():
                await self._pass_on(swap.feed(piece))
            await self._pass_on(swap.flush())
        trailers = self._placeholders.headers(end_to_end(self._request.trailers))
        chunked = body is None and self._request.length is None
        await self._say(h11.EndOfMessage(headers=trailers if chunked else []))

    async def _pass_on(self, data: bytes) -> None:
        if data:
            await self._say(h11.Data(data=data))

    async def _say(self, event: h11.Event) -> None:
        try:
            data = self._upstream.connection.send(event)
        except h11.LocalProtocolError as error:
            raise Unreachable(f"the request cannot be passed on: {error}", error_code="malformed_request") from None
        if data:
            try:
                await self._upstream.stream.write(data)
            except OSError:
                # It may have answered before it hung up: what there is to read decides.
                return

    # Back

    async def _receive(self) -> Outcome:
        while True:
            match await self._next():
                case h11.InformationalResponse(status_code=101) as event:
                    return await self._switch(event)
                case h11.InformationalResponse() as event:
                    await self._request.inform(event.status_code, self._shown(event.headers.raw_items()))
                case h11.Response() as event:
                    return await self._relay(event)
                case _:
                    raise self._hung_up()

    async def _switch(self, event: h11.InformationalResponse) -> Outcome:
        if not self._is_websocket:
            raise Unreachable(f"{self._origin.host} switched to another protocol", error_code="bad_upgrade")
        kept = self._shown(event.headers.raw_items())
        rest = await self._request.switch([*kept, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")])
        return Outcome(101, rest, self._upstream.connection.trailing_data[0])

    async def _relay(self, event: h11.Response) -> Outcome:
        request = self._request
        bare = request.method == "HEAD" or event.status_code in (204, 304)
        headers = self._shown(event.headers.raw_items())
        coding: Coding = Identity()
        if self._redacts and not bare:
            coded = next((value for name, value in event.headers if name == b"content-encoding"), None)
            if event.status_code == 206 and coded not in (None, b"identity"):
                raise Unreachable("a part of a compressed answer cannot be searched", error_code="encoded_response")
            coding = coding_of(coded)
            headers = without(headers, b"content-encoding", b"content-length")
        elif any(name == b"transfer-encoding" for name, _ in event.headers):
            headers = without(headers, b"content-length")
        redactor = Redactor(self._placeholders.patterns)
        is_events = any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in event.headers
        )
        await request.answer(event.status_code, headers, self._placeholders.patterns.redact(event.reason))
        trailers: Sequence[tuple[bytes, bytes]] = ()
        while True:
            match await self._next():
                case h11.Data(data=data):
                    for plain in coding.decode(bytes(data)):
                        shown = redactor.feed(plain)
                        if is_events and plain.endswith((b"\n\n", b"\r\n\r\n")):
                            # Somebody waits for the whole event, and no honest echo goes on in the next one.
                            shown += redactor.flush()
                        await _send_some(request, shown)
                case h11.EndOfMessage(headers=found):
                    trailers = self._shown(found.raw_items())
                    break
                case _:
                    raise self._hung_up()
        coding.finish()
        await _send_some(request, redactor.flush())
        await request.finish(trailers)
        return Outcome(event.status_code)

    async def _next(self) -> object:
        connection = self._upstream.connection
        try:
            while (event := connection.next_event()) in _READ_NEXT:
                async with asyncio.timeout(ANSWER_IDLE_S):
                    data = await self._upstream.stream.read()
                self._heard = self._heard or bool(data)
                connection.receive_data(data)
        except h11.RemoteProtocolError:
            raise self._hung_up() from None
        except TimeoutError:
            raise Unreachable(f"{self._origin.host} does not go on answering", error_code="too_slow") from None
        except OSError:
            raise self._hung_up() from None
        return event

    def _hung_up(self) -> Unreachable:
        if not self._heard:
            return NothingSaid(f"{self._origin.host} hung up without an answer", error_code="hung_up")
        return Unreachable(
            f"{self._origin.host} broke off its answer, or it is not HTTP/1.1", error_code="bad_response"
        )

    def _shown(self, headers: Sequence[tuple[bytes, bytes]]) -> Headers:
        """The upstream's headers as the sandbox may see them."""
        kept = without(end_to_end(headers), b"alt-svc")  # another protocol would go around the door
        if not self._redacts:
            return kept
        return [(name, self._placeholders.patterns.redact(value)) for name, value in kept]


async def relay_websocket(client: Stream, upstream: Upstream, outcome: Outcome, placeholders: Placeholders) -> None:
    """Pass messages both ways until one side ends. What the sandbox sends is masked, and goes on as it is."""

    loop = asyncio.get_running_loop()

    async def out() -> None:
        data = outcome.client_rest or await client.read()
        while data:
            scope.reschedule(loop.time() + ANSWER_IDLE_S)
            await upstream.stream.write(data)
            data = await client.read()
        await upstream.stream.end()

    async def back() -> None:
        frames = ServerFrames(placeholders.patterns) if placeholders.patterns else None
        data = outcome.upstream_rest or await upstream.stream.read()
        while data:
            scope.reschedule(loop.time() + ANSWER_IDLE_S)
            await client.write(frames.feed(data) if frames else data)
            data = await upstream.stream.read()
        await client.end()

    try:
        async with asyncio.timeout(ANSWER_IDLE_S) as scope, asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(out(), name="websocket-out")
            await back()
            # The server has hung up: nobody is left to talk to.
            sending.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


def without(headers: Headers, *names: bytes) -> Headers:
    return [pair for pair in headers if pair[0].lower() not in names]


async def _send_some(request: Request, data: bytes) -> None:
    if data:
        await request.send(data)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Whatever went wrong first: there are no more than two tasks, and the second then ends because of it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
