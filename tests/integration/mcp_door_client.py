"""A bare client of the door: one message, one answer, every header in the test's own hands."""

import itertools
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.integration.mcp_door_kit import Opened
from tests.integration.mcp_door_upstream import Upstream

BOTH = "application/json, text/event-stream"
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass
class Bare:
    http: httpx2.AsyncClient
    url: str
    token: str
    modern: bool = False
    session: str | None = None
    ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def headers(self, message: Mapping[str, Any]) -> dict[str, str]:
        found = {"authorization": f"Bearer {self.token}", "accept": BOTH, "content-type": "application/json"}
        if self.session is not None:
            found["mcp-session-id"] = self.session
        if self.modern and "method" in message:
            found |= {"mcp-protocol-version": "2026-07-28", "mcp-method": message["method"]}
            params = message.get("params", {})
            if "name" in params or "uri" in params:
                found["mcp-name"] = params.get("name") or params.get("uri")
        return found

    def message(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        given = dict(params or {})
        if self.modern:
            given["_meta"] = {**META, **given.get("_meta", {})}
        return {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": given}

    async def send(
        self, message: Any, headers: Mapping[str, str] | None = None, *, raw: bytes | None = None
    ) -> httpx2.Response:
        base = self.headers(message if isinstance(message, dict) else {})
        return await self.http.post(
            self.url,
            content=raw if raw is not None else json.dumps(message),
            headers={key: value for key, value in {**base, **(headers or {})}.items() if value != ""},
        )

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None, **more: str) -> httpx2.Response:
        return await self.send(self.message("tools/call", {"name": tool, "arguments": dict(arguments or {})}), more)

    async def initialize(self) -> httpx2.Response:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bare", "version": "1"}}
        answer = await self.send(self.message("initialize", params))
        self.session = answer.headers.get("mcp-session-id")
        return answer


@asynccontextmanager
async def bare(url: str, token: str, *, modern: bool = False) -> AsyncIterator[Bare]:
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as http:
        yield Bare(http, url, token, modern)


@asynccontextmanager
async def through(
    door: Opened,
    up: Upstream,
    *,
    modern: bool = False,
    tools: Collection[str] | None = None,
    session: str = "sesn_1",
) -> AsyncIterator[Bare]:
    """A client with a grant for one server, called `up`."""
    token = await door.token({"up": up.url}, tools=tools, session=session)
    async with bare(f"{door.url}/up", token, modern=modern) as client:
        yield client
