"""An event stream as an answer: frames as they come, heartbeats in between, an end that leaves nothing hanging."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
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
        self._sent_at = asyncio.get_running_loop().time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with asyncio.TaskGroup() as tasks:
            ends = [
                tasks.create_task(self._while_read(self._pump(send)), name="pump"),
                tasks.create_task(self._while_read(self._beat(send)), name="beat"),
                tasks.create_task(_hung_up(receive), name="hung up"),
                tasks.create_task(self._closing.wait(), name="closing"),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()
        # A reader that takes nothing must not hold up the end either.
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _while_read(self, sending: Coroutine[None, None, None]) -> None:
        try:
            await sending
        except TimeoutError:
            logger.info("%s: stream closed: its reader took nothing for %g s", self._request_id, self._pace.stall_s)

    async def _pump(self, send: Send) -> None:
        try:
            async with aclosing(self._items) as items:
                # Proxies and some clients hold the headers back until there is a body.
                await self._write(send, OPENING)
                async for item in items:
                    await self._write(send, frame(item.type, item.body, cursor=item.cursor))
                    if item.type == _LAST:
                        return
        except TimeoutError:
            raise  # of the reader, who is told of in one place
        except RequestError as error:
            await self._write(send, frame("error", envelope(error, self._request_id)))
        except Exception:
            logger.exception("%s: stream failed", self._request_id)
            await self._write(send, frame("error", envelope(InternalError(), self._request_id)))

    async def _beat(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._sent_at
            if quiet >= self._pace.heartbeat_s:
                await self._write(send, HEARTBEAT)
                quiet = 0.0
            await asyncio.sleep(self._pace.heartbeat_s - quiet)

    async def _write(self, send: Send, data: bytes) -> None:
        # Noted before the write, too: a heartbeat must not queue up behind a frame that waits for a slow reader.
        self._sent_at = asyncio.get_running_loop().time()
        async with asyncio.timeout(self._pace.stall_s):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent_at = asyncio.get_running_loop().time()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
