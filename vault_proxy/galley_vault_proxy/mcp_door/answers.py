"""The door's own answers, and sending one: bounded, so that a client that stops reading holds nothing for long."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Send

from galley_vault_proxy.mcp_door.jsonrpc import Object, RequestId, dump, error_message, result_message
from galley_vault_proxy.mcp_door.sse import event
from galley_vault_proxy.mcp_door.wire import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    UNSUPPORTED_VERSION,
    Era,
)

JSON_TYPE: Final = (b"content-type", b"application/json")
EVENT_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
_STATUS: Final = {
    METHOD_NOT_FOUND: 404,
    INVALID_PARAMS: 400,
    INVALID_REQUEST: 400,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
}


class SlowReader(Exception):
    """The client does not take what is sent to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and a JSON-RPC message, or nothing."""

    status: int
    message: Mapping[str, Any] | None
    headers: Sequence[tuple[bytes, bytes]] = field(default_factory=tuple)


def refusal(
    status: int,
    message: str,
    *,
    code: int = INVALID_REQUEST,
    id_: RequestId | None = None,
    data: object = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Answer:
    return Answer(status, error_message(id_, code, message, data), headers)


def rpc_error(id_: RequestId | None, code: int, message: str, era: Era, data: object = None) -> Answer:
    """An error of the protocol. The modern era has HTTP statuses for some of them; before, it is always 200."""
    status = _STATUS.get(code, 200) if era == "modern" else 200
    return Answer(status, error_message(id_, code, message, data))


def tool_error(id_: RequestId | None, text: str, era: Era) -> Answer:
    """A result that the model reads: what it may do about it is in the text."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    if era == "modern":
        result["resultType"] = "complete"
    return Answer(200, result_message(id_, result))


def upstream_error(id_: RequestId | None, text: str, *, type_: str, server: str, nothing_done: bool) -> Answer:
    """A failure on the way to the server, or there. `type_` is what a runtime tells its user."""
    data = {"type": type_, "mcp_server_name": server, "nothing_done": nothing_done}
    return refusal(502, text, code=INTERNAL_ERROR, id_=id_, data=data)


def result_answer(id_: RequestId | None, result: Object) -> Answer:
    return Answer(200, result_message(id_, result))


class Reply:
    """The answer to one HTTP request, begun at most once."""

    def __init__(
        self, send: Send, tasks: asyncio.TaskGroup, *, patience_s: float, extra: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self._send = send
        self._tasks = tasks
        self._patience = patience_s
        self._extra = extra
        self.status: int | None = None
        self.ended = False
        self.bytes = 0

    async def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._extra]})

    async def body(self, chunk: bytes, *, more: bool = True) -> None:
        """Raises SlowReader."""
        self.bytes += len(chunk)
        self.ended = not more
        try:
            async with asyncio.timeout(self._patience):
                await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        except TimeoutError:
            raise SlowReader from None

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.body(body, more=False)

    async def answer(self, answer: Answer) -> None:
        if self.status is not None:
            # A stream has begun: what is left to say is its last event.
            if not self.ended and answer.message is not None:
                await self.body(event(dump(answer.message)))
            await self.end()
        elif answer.message is None:
            await self.whole(answer.status, answer.headers, b"")
        else:
            await self.whole(answer.status, [JSON_TYPE, *answer.headers], dump(answer.message))

    async def end(self) -> None:
        if self.status is not None and not self.ended:
            await self.body(b"", more=False)

    @contextmanager
    def kept_alive(self, every_s: float) -> Iterator[None]:
        """Send a comment whenever the stream has been silent for long, so that nothing on the way takes it for dead.

        A timer and no task: almost every answer is over before it is needed.
        """
        loop = asyncio.get_running_loop()
        seen = self.bytes
        timer = loop.call_later(every_s, lambda: tick())

        def tick() -> None:
            nonlocal seen, timer
            if self.ended:
                return
            if self.status is not None and self.bytes == seen:
                self._tasks.create_task(self._comment(), name="mcp-keep-alive")
            seen = self.bytes
            timer = loop.call_later(every_s, tick)

        try:
            yield
        finally:
            timer.cancel()

    async def _comment(self) -> None:
        # Whoever sends the next event finds out for itself that nobody reads.
        with suppress(SlowReader, OSError):
            if not self.ended:
                await self.body(b":\n\n")
