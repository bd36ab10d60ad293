"""The port of links: messages to one server and back, whatever carries them.

The bridge between the eras, the older event-stream transport and servers on stdio talk through it. Where nothing has
to be bridged there is no link: the relay passes bytes.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from galley_vault_proxy.mcp_door.failure import ServerFailed
from galley_vault_proxy.mcp_door.headers import RawHeaders
from galley_vault_proxy.mcp_door.screen import Screen
from galley_vault_proxy.mcp_door.visit import Visit

Wire: TypeAlias = dict[str, Any]
"""One JSON-RPC message."""

Unasked: TypeAlias = Callable[[Wire], None]
"""Takes what a server sends that belongs to no request."""

_QUEUED: Final = 4096


@dataclass(frozen=True, slots=True)
class Via:
    """On whose behalf, and with which credential, a message is sent."""

    visit: Visit
    screen: Screen


class Link(Protocol):
    """Every call raises ServerFailed when the server cannot be reached, or is gone."""

    def ask(self, message: Wire, via: Via, headers: RawHeaders = ()) -> AsyncGenerator[Wire, None]:
        """Send a request; yield what belongs to it, its answer last. Left early, the request is cancelled.

        `headers` repeat arguments of a call, where there are headers and the server is of the newer era.
        """
        ...

    async def tell(self, message: Wire, via: Via) -> None:
        """Send a notification, or the answer to a request of the server."""
        ...

    async def close(self) -> None: ...


class Pipe:
    """A Link over one pipe for everything, where what belongs together must be found out by ids and tokens.

    Whatever reads from the server calls `arrived` for each message and `lost` at the end.
    """

    def __init__(self, send: Callable[[Wire], Awaitable[None]], unasked: Unasked) -> None:
        self._send = send
        self._unasked = unasked
        self._waiting: dict[Any, asyncio.Queue[Wire | ServerFailed]] = {}
        self._gone: ServerFailed | None = None
        self.on_lost: Callable[[], None] = lambda: None

    @property
    def gone(self) -> bool:
        return self._gone is not None

    async def ask(self, message: Wire, via: Via, headers: RawHeaders = ()) -> AsyncGenerator[Wire, None]:
        if self._gone is not None:
            raise self._gone
        id_ = message["id"]
        queue: asyncio.Queue[Wire | ServerFailed] = asyncio.Queue(_QUEUED)
        self._waiting[id_] = queue
        answered = False
        try:
            await self._send(message)
            while not answered:
                got = await queue.get()
                if isinstance(got, ServerFailed):
                    answered = True
                    raise got
                answered = "method" not in got
                yield got
        finally:
            self._waiting.pop(id_, None)
            if not answered and self._gone is None:
                await self._cancel(id_)

    async def tell(self, message: Wire, via: Via) -> None:
        if self._gone is not None:
            raise self._gone
        await self._send(message)

    async def close(self) -> None:
        """What carries the pipe ends it."""

    def arrived(self, message: Wire) -> None:
        queue = self._queue_of(message)
        if queue is None:
            if "method" in message:
                self._unasked(message)
            return
        try:
            queue.put_nowait(message)
        except asyncio.QueueFull:
            self.lost(ServerFailed("the server sends more than anybody takes", reason="server_floods"))

    def lost(self, failed: ServerFailed) -> None:
        self._gone = self._gone or failed
        for queue in self._waiting.values():
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(self._gone)
        self.on_lost()

    def _queue_of(self, message: Wire) -> "asyncio.Queue[Wire | ServerFailed] | None":
        if "method" not in message:
            return self._waiting.get(message.get("id"))
        params = message.get("params")
        if isinstance(params, dict) and message["method"] == "notifications/progress":
            return self._waiting.get(params.get("progressToken"))
        if isinstance(params, dict) and isinstance(params.get("_meta"), dict):
            of = params["_meta"].get("io.modelcontextprotocol/subscriptionId")
            if of in self._waiting:
                return self._waiting[of]
        if message["method"].endswith("list_changed") or message["method"] == "notifications/resources/updated":
            return None
        # A request of the server, or a line of its log: on one pipe nothing says which call it belongs to.
        return next(reversed(self._waiting.values())) if self._waiting else None

    async def _cancel(self, id_: Any) -> None:
        params = {"requestId": id_, "reason": "the client has cancelled it"}
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        try:
            # The task that asked is being cancelled itself: this must go out all the same, but not for long.
            async with asyncio.timeout(1):
                await asyncio.shield(self._send(message))
        except (TimeoutError, ServerFailed):
            pass
