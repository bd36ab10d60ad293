"""An event stream as an answer: frames as they come, heartbeats in between, an end that leaves nothing hanging."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.types import Receive, Scope, Send

from galley_server.errors import RequestError
from galley_server.http.envelope import InternalError, envelope
from galley_server.http.sse import HEARTBEAT, OPENING, frame

logger = logging.getLogger(__name__)

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    # nginx would otherwise collect frames before it passes them on.
    (b"x-accel-buffering", b"no"),
]
_LAST: Final = "session.deleted"
_FLUSH_S: Final = 1.0
_ENOUGH: Final = 64 * 1024


class Frame(Protocol):
    """What a stream is made of. A preview has no cursor."""

    @property
    def type(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def cursor(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a stream stays silent at most, and how long a reader may take for what it was sent."""

    heartbeat_s: float = 15.0
    stall_s: float = 30.0


class EventStream:
    """Sends items until they end, the client is gone or too slow, or the server closes.

    The headers go out before the first item is asked for, so an open stream means: from here on nothing is missed.
    """

    def __init__(self, items: AsyncGenerator[Frame], *, closing: asyncio.Event, request_id: str, pace: Pace) -> None:
        self._items = items
        self._closing = closing
        self._request_id = request_id
        self._pace = pace
        self._outbox = _Outbox()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._pump(), name="pump")
            ends = [
                tasks.create_task(self._send_out(send), name="send out"),
                tasks.create_task(_hung_up(receive), name="hung up"),
                tasks.create_task(self._closing.wait(), name="closing"),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in (pump, *ends):
                task.cancel()
        # A reader that takes nothing must not hold up the end either.
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self) -> None:
        try:
            async with aclosing(self._items) as items:
                async for item in items:
                    await self._outbox.put(frame(item.type, item.body, cursor=item.cursor))
                    if item.type == _LAST:
                        break
        except RequestError as error:
            await self._outbox.put(frame("error", envelope(error, self._request_id)))
        except Exception:
            logger.exception("%s: stream failed", self._request_id)
            await self._outbox.put(frame("error", envelope(InternalError(), self._request_id)))
        self._outbox.end()

    async def _send_out(self, send: Send) -> None:
        data: bytes | None = OPENING  # proxies and some clients hold the headers back until there is a body
        while data is not None:
            try:
                async with asyncio.timeout(self._pace.stall_s):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except TimeoutError:
                logger.info("%s: stream closed: its reader took nothing for %g s", self._request_id, self._pace.stall_s)
                return
            try:
                async with asyncio.timeout(self._pace.heartbeat_s):
                    data = await self._outbox.take()
            except TimeoutError:
                data = HEARTBEAT


class _Outbox:
    """Frames on their way out. Those that come at once, as the rows of one commit do, leave as one piece."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._size = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Add a frame; waits while more than enough of them wait."""
        while self._size >= _ENOUGH:
            self._taken.clear()
            await self._taken.wait()
        self._frames.append(data)
        self._size += len(data)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def take(self) -> bytes | None:
        """Everything that waits, None once there will be nothing more."""
        while not self._frames and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if not self._frames:
            return None
        data, self._size = b"".join(self._frames), 0
        self._frames.clear()
        self._taken.set()
        return data


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
