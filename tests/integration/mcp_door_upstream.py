"""A server that does exactly what a test says, and remembers what it was sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from galley_vault_proxy.http.serving import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.integration.mcp_door_kit import SERVICE_KEY

ECHO = {
    "name": "echo",
    "description": "Says what it is told",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
DELETE_ALL = {"name": "delete_all", "inputSchema": {"type": "object"}}


@dataclass
class Received:
    verb: str
    headers: dict[str, str]
    raw: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def method(self) -> str:
        return str(self.message.get("method", "")) if self.body else ""


Answer = Callable[[Received], Awaitable[Response | None]]


@dataclass
class Upstream:
    """`answer` is asked first; None leaves it to what an ordinary server of both eras would say."""

    url: str = ""
    tools: list[dict[str, Any]] = field(default_factory=lambda: [dict(ECHO), dict(DELETE_ALL)])
    answer: Answer | None = None
    received: list[Received] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def methods(self) -> list[str]:
        return [one.method for one in self.received]

    def calls(self) -> list[Received]:
        return [one for one in self.received if one.method == "tools/call"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        got = Received(request.method, dict(request.headers), list(request.headers.raw), await request.body())
        self.received.append(got)
        response = await self.answer(got) if self.answer is not None else None
        await (response or self._ordinary(got))(scope, receive, send)

    def _ordinary(self, got: Received) -> Response:
        if got.verb != "POST":
            return Response(status_code=405, headers={"allow": "POST"})
        message = got.message
        if "id" not in message or "method" not in message:
            return Response(status_code=202)
        modern = got.headers.get("mcp-protocol-version") == "2026-07-28"
        complete: dict[str, Any] = {"resultType": "complete"} if modern else {}
        cached = {**complete, "ttlMs": 0, "cacheScope": "private"} if modern else {}
        match got.method:
            case "initialize":
                result: dict[str, Any] = {
                    "protocolVersion": message["params"].get("protocolVersion", "2025-11-25"),
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "scripted", "version": "1"},
                }
                return reply(message, result, headers={"mcp-session-id": "upstream-session"})
            case "server/discover":
                if not modern:
                    return reply(message, error={"code": -32601, "message": "Method not found"})
                return reply(message, {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **cached})
            case "tools/list":
                return reply(message, {"tools": self.tools, **cached})
            case "tools/call":
                arguments = message["params"].get("arguments", {})
                return reply(message, {"content": [{"type": "text", "text": str(arguments.get("text"))}], **complete})
            case _:
                return reply(message, complete)


def reply(
    message: dict[str, Any],
    result: dict[str, Any] | None = None,
    *,
    error: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": message.get("id")}
    body |= {"error": error} if error is not None else {"result": result}
    return JSONResponse(body, status, headers)


def events(*parts: bytes | asyncio.Event, headers: dict[str, str] | None = None) -> Response:
    """A stream of these pieces as they are; at an event it waits for it."""

    async def stream() -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, bytes):
                yield part
            else:
                await part.wait()

    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@asynccontextmanager
async def scripted(answer: Answer | None = None) -> AsyncIterator[Upstream]:
    upstream = Upstream(answer=answer)
    closing = asyncio.Event()
    async with serve(upstream, host="127.0.0.1", port=0, key=SERVICE_KEY, closing=closing, grace_s=1) as address:
        upstream.url = f"http://127.0.0.1:{address.port}/mcp"
        yield upstream
