"""kill -9 while a call is at an MCP server: it is never sent again, and the model is told that nobody knows."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import call, say
from galley_server.demo.script import Script
from starlette.responses import Response, StreamingResponse

from tests.acceptance.server_process import Served, served
from tests.integration.broker_kit import ALLOW, LOOPBACK, mcp_toolset, until
from tests.integration.mcp_door_upstream import Received, scripted

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]


async def ask(server: Served, method: str, path: str, body: Any = None) -> Any:
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=30, trust_env=False) as client:
        answer = await client.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def idle(server: Served, session_id: str) -> list[dict[str, Any]]:
    async def is_idle() -> bool:
        return bool((await ask(server, "GET", f"/v1/sessions/{session_id}"))["status"] == "idle")

    await until(is_idle)
    events: list[dict[str, Any]] = (await ask(server, "GET", f"/v1/sessions/{session_id}/events"))["data"]
    return events


async def test_a_call_that_was_on_its_way_is_not_made_twice(tmp_path: Path) -> None:
    called = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        called.set()
        yield b": soon\n\n"
        await asyncio.Event().wait()

    async def answer(got: Received) -> Response | None:
        return StreamingResponse(slowly(), media_type="text/event-stream") if got.method == "tools/call" else None

    script = Script(call("mcp__up__echo", text="once"), say("I see"))
    async with scripted(answer) as upstream, serve_scripted(script) as model:
        settings = {"GALLEY_MODEL_BASE_URL": model, "GALLEY_MODEL_API_KEY": "k", "GALLEY_BROKER": "auto", **LOOPBACK}
        async with served(tmp_path / "home", **settings) as server:
            agent = await ask(
                server,
                "POST",
                "/v1/agents",
                {
                    "name": "cook",
                    "model": "scripted-1",
                    "mcp_servers": [{"type": "url", "name": "up", "url": upstream.url}],
                    "tools": [mcp_toolset("up", default=ALLOW)],
                },
            )
            environment = await ask(server, "POST", "/v1/environments", {"name": "plain"})
            message = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
            session = await ask(
                server,
                "POST",
                "/v1/sessions",
                {"agent": agent["id"], "environment_id": environment["id"], "initial_events": [message]},
            )
            async with asyncio.timeout(60):
                await called.wait()
            server.process.kill()
            await server.process.wait()
        async with served(tmp_path / "home", **settings) as server:
            events = await idle(server, session["id"])
    assert len(upstream.calls()) == 1
    (result,) = [event for event in events if event["type"] == "agent.mcp_tool_result"]
    assert result["is_error"] is True
    assert result["content"][0]["text"].startswith("interrupted, may have run")
    assert "interrupted, may have run" in json.dumps(script.bodies[1]["messages"])


async def test_a_server_that_dies_before_its_servers_answered_asks_them_again(tmp_path: Path) -> None:
    listed = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        listed.set()
        yield b": soon\n\n"
        await asyncio.Event().wait()

    async def answer(got: Received) -> Response | None:
        once = got.method == "tools/list" and not listed.is_set()
        return StreamingResponse(stuck(), media_type="text/event-stream") if once else None

    script = Script(call("mcp__up__echo", text="hello"), say("done"))
    async with scripted(answer) as upstream, serve_scripted(script) as model:
        settings = {"GALLEY_MODEL_BASE_URL": model, "GALLEY_MODEL_API_KEY": "k", "GALLEY_BROKER": "auto", **LOOPBACK}
        async with served(tmp_path / "home", **settings) as server:
            tools, servers = [mcp_toolset("up", default=ALLOW)], [{"type": "url", "name": "up", "url": upstream.url}]
            recipe = {"name": "cook", "model": "scripted-1", "mcp_servers": servers, "tools": tools}
            agent = await ask(server, "POST", "/v1/agents", recipe)
            environment = await ask(server, "POST", "/v1/environments", {"name": "plain"})
            message = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
            made = {"agent": agent["id"], "environment_id": environment["id"], "initial_events": [message]}
            session = await ask(server, "POST", "/v1/sessions", made)
            async with asyncio.timeout(60):
                await listed.wait()
            server.process.kill()
            await server.process.wait()
        async with served(tmp_path / "home", **settings) as server:
            events = await idle(server, session["id"])
    assert [event["type"] for event in events].count("session.status_running") == 1
    (result,) = [event for event in events if event["type"] == "agent.mcp_tool_result"]
    assert result["content"][0]["text"] == "hello"
