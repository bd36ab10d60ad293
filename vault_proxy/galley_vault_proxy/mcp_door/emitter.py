"""The answer to one call, as JSON while nothing comes before it, as a stream from the first thing that does."""

from collections.abc import Sequence
from typing import Any

from galley_vault_proxy.mcp_door.answers import EVENT_HEADERS, JSON_TYPE, Reply
from galley_vault_proxy.mcp_door.link import Wire
from galley_vault_proxy.mcp_door.screen import Screen
from galley_vault_proxy.mcp_door.sse import event


class Emitter:
    def __init__(self, reply: Reply, screen: Screen, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._reply = reply
        self._screen = screen
        self._headers = list(headers)

    @property
    def begun(self) -> bool:
        return self._reply.status is not None

    async def open(self) -> None:
        if not self.begun:
            await self._reply.start(200, [*self._headers, *EVENT_HEADERS])

    async def message(self, message: Wire) -> None:
        await self.open()
        await self._reply.body(event(await self._screen.value(message)))

    async def answer(self, message: dict[str, Any], status: int = 200) -> None:
        data = await self._screen.value(message)
        if self.begun:
            await self._reply.body(event(data))
            await self._reply.end()
        else:
            await self._reply.whole(status, [*self._headers, JSON_TYPE], data)

    async def accepted(self) -> None:
        await self._reply.whole(202, self._headers, b"")
