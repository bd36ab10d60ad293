"""One HTTP exchange in flight, as seen from outside: what was answered so far, and how to end it from our side."""

from collections.abc import Callable

import anyio
from mcp_types import INTERNAL_ERROR, RequestId
from starlette.datastructures import Headers
from starlette.types import Message, Send

from galley_server.mcp.gate import Denied
from galley_server.mcp.lines import error_line


class Exchange:
    """`request_id` is None for a stream or a notification: nobody waits for an answer."""

    def __init__(self, request_id: RequestId | None, send: Send, started: Callable[[int, Headers], None]) -> None:
        self.request_id = request_id
        self.scope = anyio.CancelScope()
        self._status = 0
        self._headers = Headers()
        self._send = send
        self._started = started  # told the status and headers before the client can see them
        self._complete = False
        self._cut_short = False

    def cancel(self) -> None:
        self._cut_short = True
        self.scope.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = Headers(raw=list(message["headers"]))
            self._started(self._status, self._headers)
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def finish(self, reason: str) -> None:
        """Complete whatever the application left open; a response that just stops looks like a broken server."""
        if self._complete:
            return
        if self._status == 0:
            if self._cut_short:
                denied = Denied(503, reason, INTERNAL_ERROR, self.request_id, {"Retry-After": "1"})
                await denied.response()({"type": "http"}, _no_body, self.send)
            return
        last = b""
        is_stream = self._headers.get("content-type", "").startswith("text/event-stream")
        if self._cut_short and is_stream and self.request_id is not None:
            last = (
                b"event: message\r\ndata: " + error_line(self.request_id, INTERNAL_ERROR, reason).strip() + b"\r\n\r\n"
            )
        await self.send({"type": "http.response.body", "body": last, "more_body": False})


async def _no_body() -> Message:
    return {"type": "http.disconnect"}
