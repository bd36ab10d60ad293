"""The server's end of the stream to a hand: requests out, bounded answers in."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from galley_sandbox import results
from galley_sandbox.channels import MAX_TUNNELS, Drained, Ended, Link, Opened, Ponged, Received, WasReset
from galley_sandbox.errors import CallRefused, FileRefused, HandMisbehaved, SandboxError, SandboxLost
from galley_sandbox.frames import FramingError
from galley_sandbox.port import JSON, CallState, ToolResult
from galley_sandbox.stream import Stream

if TYPE_CHECKING:
    from galley_sandbox.channels import Event

logger = logging.getLogger(__name__)

HELLO_WITHIN_S = 20.0
SILENCE_S = 10.0
LOST_AFTER_S = 40.0
GRACE_S = 30.0
_LARGE = 256 * 1024


class _Exchange:
    """One request and what came back of it so far."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.ended = False
        self.refused: str | None = None
        self.changed = asyncio.Event()


class HandTunnel:
    """Implements the port's Tunnel. The client that it came from keeps its channel."""

    def __init__(self, client: "HandClient", number: int, exchange: _Exchange, door: str) -> None:
        self._client = client
        self._number = number
        self._exchange = exchange
        self.door = door

    async def read(self) -> bytes:
        try:
            return await self._client._next(self._number, self._exchange) or b""
        except CallRefused as e:
            raise ConnectionResetError(str(e)) from e

    async def write(self, data: bytes) -> None:
        await self._client._send_all(self._number, self._exchange, data)

    async def end(self) -> None:
        self._client._end(self._number)

    def close(self) -> None:
        if self._number in self._client._exchanges:
            self._client._close(self._number)


class HandClient:
    """Implements the port's Hand over one stream. Made by `open`, and of no use after it."""

    def __init__(self, stream: Stream, *, wall_s: float) -> None:
        self._stream = stream
        self._wall_s = wall_s
        self._link = Link(first=True, max_peer_channels=MAX_TUNNELS)
        self._exchanges: dict[int, _Exchange] = {}
        self._output = asyncio.Event()
        self._doors: frozenset[str] = frozenset()
        self._arrived: deque[HandTunnel] = deque()
        self._arrival = asyncio.Event()
        self._lost: SandboxLost | None = None
        self._heard_at = 0.0
        self._calls_under_way = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, stream: Stream, *, incarnation: str, wall_s: float) -> AsyncIterator[Self]:
        """Greet the hand at the other end and make sure that it is the one that was meant. Raises SandboxLost."""
        client = cls(stream, wall_s=wall_s)
        failure: BaseException | None = None
        async with asyncio.TaskGroup() as tasks:
            pumps = [
                tasks.create_task(client._pump_in(), name="hand-in"),
                tasks.create_task(client._pump_out(), name="hand-out"),
                tasks.create_task(client._watch(), name="hand-watch"),
            ]
            try:
                await client._greet(incarnation)
                yield client
            except BaseException as e:  # carried around the group, which would wrap it, and raised again below
                failure = e
            finally:
                client._lose(SandboxLost("The stream to the hand was closed."))
                for pump in pumps:
                    pump.cancel()
        if failure is not None:
            raise failure

    @property
    def connected(self) -> bool:
        return self._lost is None

    async def call(
        self, call_id: str, tool: str, input: Mapping[str, JSON], *, timeout_s: float | None = None, shell: str = "main"
    ) -> ToolResult:
        limit = self._wall_s if timeout_s is None else min(timeout_s, self._wall_s)
        # Calls of one shell wait for each other, so each may take as long as all of them together.
        self._calls_under_way += 1
        patience = limit * self._calls_under_way + GRACE_S
        meta: dict[str, JSON] = {"op": "call", "id": call_id, "tool": tool, "timeout_s": timeout_s, "shell": shell}
        try:
            async with asyncio.timeout(patience):
                raw = await self._ask(meta, json.dumps(input).encode())
        except TimeoutError as e:
            self._lose(HandMisbehaved(f"The hand did not end call {call_id} within {patience:.0f} s."))
            raise self._lost_error() from e
        finally:
            self._calls_under_way -= 1
        return await _parsed_result(raw)

    async def query(self, call_id: str) -> CallState:
        raw = await self._ask({"op": "query", "id": call_id})
        return await asyncio.to_thread(results.parse_state, raw) if len(raw) > _LARGE else results.parse_state(raw)

    async def acknowledge(self, call_id: str) -> None:
        await self._ask({"op": "acknowledge", "id": call_id})

    async def cancel(self, call_id: str) -> None:
        await self._ask({"op": "cancel", "id": call_id})

    async def end(self) -> None:
        """Have the hand end itself, and with it the sandbox."""
        try:
            await self._ask({"op": "end"})
        except SandboxLost:
            return

    async def put_file(
        self, path: str, source: AsyncIterator[bytes], *, mode: int = 0o644, after_roots: bool = False
    ) -> None:
        number, exchange = self._request({"op": "put", "path": path, "mode": mode, "roots": after_roots})
        try:
            async for data in source:
                if not await self._send(number, exchange, data):
                    break
            self._end(number)
            await self._collect(number, exchange)
        except CallRefused as e:
            raise FileRefused(path, str(e)) from e
        finally:
            self._close(number)

    async def get_file(self, path: str) -> AsyncIterator[bytes]:
        number, exchange = self._request({"op": "get", "path": path})
        self._end(number)
        try:
            while (data := await self._next(number, exchange)) is not None:
                yield data
        except CallRefused as e:
            raise FileRefused(path, str(e)) from e
        finally:
            self._close(number)

    async def listen(self, doors: Mapping[str, int]) -> Mapping[str, int]:
        # Before the hand is asked: the first connection may be here before its answer.
        self._doors |= doors.keys()
        return results.parse_ports(await self._ask({"op": "listen", "doors": dict(doors)}), doors)

    async def tunnels(self) -> AsyncIterator[HandTunnel]:
        while True:
            self._arrival.clear()
            while self._arrived:
                yield self._arrived.popleft()
            if self._lost is not None:
                raise self._lost_error()
            await self._arrival.wait()

    async def set_environment(self, variables: Mapping[str, str | None]) -> None:
        await self._ask({"op": "environment"}, json.dumps(dict(variables)).encode())

    # Requests

    async def _greet(self, incarnation: str) -> None:
        try:
            async with asyncio.timeout(HELLO_WITHIN_S):
                raw = await self._ask({"op": "hello"})
        except TimeoutError as e:
            raise SandboxLost("The hand did not answer the greeting.") from e
        found = results.parse_incarnation(raw)
        if found != incarnation:
            raise SandboxLost(f"Another hand answered: {found[:64]!r} where {incarnation!r} was expected.")

    async def _ask(self, meta: Mapping[str, JSON], body: bytes = b"") -> bytes:
        number, exchange = self._request(meta)
        try:
            if await self._send(number, exchange, body):
                self._end(number)
            return await self._collect(number, exchange)
        finally:
            self._close(number)

    def _request(self, meta: Mapping[str, JSON]) -> tuple[int, _Exchange]:
        if self._lost is not None:
            raise self._lost_error()
        try:
            number = self._link.open(json.dumps(meta).encode())
        except ValueError as e:
            raise CallRefused(str(e)) from e
        except BlockingIOError as e:
            raise CallRefused(f"too many requests at once: {e}") from e
        exchange = self._exchanges[number] = _Exchange()
        return number, exchange

    async def _send(self, number: int, exchange: _Exchange, data: bytes) -> bool:
        """Send as the window allows. False: the hand wants no more, and has said why."""
        view = memoryview(data)
        while True:
            exchange.changed.clear()
            if self._lost is not None:
                raise self._lost_error()
            if exchange.refused is not None or exchange.ended:
                return False
            if not view:
                return True
            size = min(self._link.space(number), len(view))
            if size:
                self._link.write(number, bytes(view[:size]))
                view = view[size:]
                self._output.set()
            else:
                await exchange.changed.wait()

    async def _send_all(self, number: int, exchange: _Exchange, data: bytes) -> None:
        """As `_send`, to a peer that may have said all that it has to say and still listens."""
        view = memoryview(data)
        while view:
            exchange.changed.clear()
            if self._lost is not None:
                raise self._lost_error()
            if exchange.refused is not None:
                raise ConnectionResetError(exchange.refused)
            size = min(self._link.space(number), len(view))
            if size:
                self._link.write(number, bytes(view[:size]))
                view = view[size:]
                self._output.set()
            else:
                await exchange.changed.wait()

    def _end(self, number: int) -> None:
        if self._link.is_open(number):
            self._link.end(number)
            self._output.set()

    async def _next(self, number: int, exchange: _Exchange) -> bytes | None:
        while True:
            exchange.changed.clear()
            if exchange.pieces:
                data = exchange.pieces.popleft()
                self._link.consumed(number, len(data))
                self._output.set()
                return data
            if exchange.refused is not None:
                raise CallRefused(exchange.refused)
            if exchange.ended:
                return None
            if self._lost is not None:
                raise self._lost_error()
            await exchange.changed.wait()

    async def _collect(self, number: int, exchange: _Exchange) -> bytes:
        whole = bytearray()
        while (data := await self._next(number, exchange)) is not None:
            whole += data
            if len(whole) > results.MAX_RESULT:
                self._lose(HandMisbehaved(f"The hand answered with more than {results.MAX_RESULT} bytes."))
                raise self._lost_error()
        return bytes(whole)

    def _close(self, number: int) -> None:
        """Whoever asked is done. If the channel is not, the hand is told that nobody listens any more."""
        del self._exchanges[number]
        if self._lost is None:
            self._link.reset(number, "no longer wanted")
            self._output.set()

    # The stream

    async def _pump_in(self) -> None:
        clock = asyncio.get_running_loop()
        self._heard_at = clock.time()
        try:
            while data := await self._stream.read():
                self._heard_at = clock.time()
                self._link.receive(data)
                while (event := self._link.next_event()) is not None:
                    self._on_event(event)
                self._output.set()
        except OSError as e:
            self._lose(SandboxLost(f"The stream to the hand broke: {e}"))
        except FramingError as e:
            self._lose(HandMisbehaved(f"The hand broke the protocol: {e}"))
        else:
            self._lose(SandboxLost("The hand closed the stream."))

    async def _pump_out(self) -> None:
        try:
            while self._lost is None:
                await self._output.wait()
                self._output.clear()
                while data := self._link.take():
                    await self._stream.write(data)
                    while (event := self._link.next_event()) is not None:
                        self._on_event(event)
        except OSError as e:
            self._lose(SandboxLost(f"The stream to the hand broke: {e}"))

    async def _watch(self) -> None:
        """Notice a stream that is dead without having ended."""
        clock = asyncio.get_running_loop()
        while self._lost is None:
            await asyncio.sleep(SILENCE_S)
            silence = clock.time() - self._heard_at
            if silence > LOST_AFTER_S:
                self._lose(SandboxLost(f"The hand has been silent for {silence:.0f} s."))
            elif silence >= SILENCE_S:
                self._link.ping(b"alive?")
                self._output.set()

    def _on_event(self, event: "Event") -> None:
        if isinstance(event, Opened):
            self._on_opened(event)
            return
        if isinstance(event, Ponged):
            return
        exchange = self._exchanges.get(event.channel)
        if exchange is None:
            return
        match event:
            case Received(data=data):
                exchange.pieces.append(data)
            case Ended():
                exchange.ended = True
            case WasReset(reason=reason):
                exchange.refused = reason or "refused"
            case Drained():
                pass  # waking the sender is all
        exchange.changed.set()

    def _on_opened(self, event: Opened) -> None:
        door = results.parse_door(event.meta)
        if door not in self._doors:
            self._link.reset(event.channel, "nothing is connected there")
            return
        exchange = self._exchanges[event.channel] = _Exchange()
        self._arrived.append(HandTunnel(self, event.channel, exchange, door))
        self._arrival.set()

    def _lose(self, error: SandboxLost) -> None:
        if self._lost is None:
            self._lost = error
            self._output.set()
            self._arrival.set()
            for exchange in self._exchanges.values():
                exchange.changed.set()

    def _lost_error(self) -> SandboxError:
        """A fresh error for each that waited: one exception object must not be raised in several tasks."""
        lost = self._lost or SandboxLost("The stream to the hand is gone.")
        return type(lost)(str(lost))


async def _parsed_result(raw: bytes) -> ToolResult:
    return await asyncio.to_thread(results.parse_result, raw) if len(raw) > _LARGE else results.parse_result(raw)
