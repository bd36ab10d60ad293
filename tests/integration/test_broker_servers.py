"""MCP servers of an agent: listed, offered, called and asked about, through the vault proxy that the server starts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from galley_server.demo.reply import call, say
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.integration.broker_kit import ALLOW, house, mcp_toolset, of_type, results, text_of
from tests.integration.mcp_door_upstream import Received, scripted

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

NOWHERE = "http://127.0.0.1:9/mcp"


def confirm(use: Any, result: str, **more: str) -> dict[str, str]:
    return {"type": "user.tool_confirmation", "tool_use_id": use.id, "result": result, **more}


async def test_a_tool_of_a_server_is_offered_and_called(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        events = await galley.turn(session.id, "go", call("mcp__up__echo", text="hello"), say("done"))
        assert "mcp__up__echo" in galley.script.requests[0].tool_names
        (used,), (answered,) = of_type(events, "agent.mcp_tool_use"), of_type(events, "agent.mcp_tool_result")
        assert (used.mcp_server_name, used.name, used.input) == ("up", "echo", {"text": "hello"})
        assert used.evaluated_permission == "allow"
        assert (answered.mcp_tool_use_id, text_of(answered), answered.is_error) == (used.id, "hello", None)
        assert results(galley.script.requests[1]) == "hello"
        # The next turn lists anew, and the model is offered the same bytes.
        await galley.turn(session.id, "again", say("nothing to do"))
        assert galley.script.bodies[0]["tools"] == galley.script.bodies[2]["tools"]


async def test_by_default_a_person_is_asked_before_a_call(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(
            tools=[{"type": "mcp_toolset", "mcp_server_name": "up"}], servers={"up": upstream.url}
        )
        events = await galley.turn(session.id, "go", call("mcp__up__echo", text="hi"))
        (use,) = of_type(events, "agent.mcp_tool_use")
        assert (use.evaluated_permission, use.evaluation.type) == ("ask", "always_ask")
        assert events[-1].stop_reason.type == "requires_action"
        assert events[-1].stop_reason.event_ids == [use.id]
        assert upstream.calls() == []
        galley.script.add(say("done"))
        events = await galley.send(session.id, confirm(use, "allow"))
        assert text_of(of_type(events, "agent.mcp_tool_result")[0]) == "hi"
        assert len(upstream.calls()) == 1


async def test_a_denied_call_never_reaches_the_server_and_the_model_reads_why(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up")], servers={"up": upstream.url})
        events = await galley.turn(session.id, "go", call("mcp__up__delete_all"))
        galley.script.add(say("I see"))
        use = of_type(events, "agent.mcp_tool_use")[0]
        events = await galley.send(session.id, confirm(use, "deny", deny_message="not today"))
        (result,) = of_type(events, "agent.mcp_tool_result")
        assert (result.is_error, "not today" in text_of(result)) == (True, True)
        assert upstream.calls() == []


async def test_a_tool_that_is_not_enabled_is_neither_offered_nor_called(tmp_path: Path) -> None:
    off = {"enabled": False, "permission_policy": {"type": "always_allow"}}
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(
            tools=[mcp_toolset("up", default=ALLOW, delete_all=off)], servers={"up": upstream.url}
        )
        events = await galley.turn(session.id, "go", call("mcp__up__delete_all"), say("done"))
        assert "mcp__up__echo" in galley.script.requests[0].tool_names
        assert "mcp__up__delete_all" not in galley.script.requests[0].tool_names
        (use,), (result,) = of_type(events, "agent.tool_use"), of_type(events, "agent.tool_result")
        assert (use.evaluated_permission, use.evaluation, result.is_error) == ("deny", None, True)
        assert "no tool named" in text_of(result)
        assert upstream.calls() == []


async def test_the_servers_credential_is_put_in_and_a_rotated_one_is_used_at_the_next_call(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        vaults = galley.client.beta.vaults
        vault = await vaults.create(display_name="Alice")
        auth: Any = {"type": "static_bearer", "mcp_server_url": upstream.url, "token": "first-token-000"}
        credential = await vaults.credentials.create(vault.id, auth=auth)
        session = await galley.session(
            tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url}, vault_ids=[vault.id]
        )
        assert session.vault_ids == [vault.id]
        await galley.turn(session.id, "go", call("mcp__up__echo", text="1"), say("done"))
        changed: Any = {"type": "static_bearer", "token": "second-token-000"}
        await vaults.credentials.update(credential.id, vault_id=vault.id, auth=changed)
        await galley.turn(session.id, "go on", call("mcp__up__echo", text="2"), say("done"))
        sent = [one.headers.get("authorization") for one in upstream.calls()]
        assert sent == ["Bearer first-token-000", "Bearer second-token-000"]


async def test_a_server_that_cannot_be_reached_stops_nothing_and_is_tried_again(tmp_path: Path) -> None:
    async with house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": NOWHERE})
        for text in ("go", "again"):
            events = await galley.turn(session.id, text, say("without it then"))
            (error,) = of_type(events, "session.error")
            assert (error.error.type, error.error.mcp_server_name) == ("mcp_connection_failed_error", "up")
            assert error.error.retry_status.type == "retrying"
            assert events[-1].stop_reason.type == "end_turn"


async def test_a_server_that_was_away_keeps_its_tools_for_the_model_and_a_call_says_what_is_wrong(
    tmp_path: Path,
) -> None:
    gone = asyncio.Event()

    async def answer(got: Received) -> Response | None:
        return JSONResponse({"error": "away"}, 503) if gone.is_set() else None

    async with scripted(answer) as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        await galley.turn(session.id, "go", call("mcp__up__echo", text="1"), say("done"))
        gone.set()
        events = await galley.turn(session.id, "again", call("mcp__up__echo", text="2"), say("done"))
        assert galley.script.bodies[0]["tools"] == galley.script.bodies[2]["tools"]
        (error,), (result,) = of_type(events, "session.error"), of_type(events, "agent.mcp_tool_result")
        assert (error.error.type, result.is_error) == ("mcp_connection_failed_error", True)


async def test_a_server_that_wants_a_credential_is_told_of_as_such(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        return Response(status_code=401, headers={"www-authenticate": "Bearer"})

    async with scripted(answer) as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        events = await galley.turn(session.id, "go", say("without it then"))
        (error,) = of_type(events, "session.error")
        assert (error.error.type, error.error.mcp_server_name) == ("mcp_authentication_failed_error", "up")


@pytest.mark.parametrize(
    ("networking", "reached"),
    [
        ({"type": "limited"}, False),
        ({"type": "limited", "allow_mcp_servers": True}, True),
        ({"type": "limited", "allowed_hosts": ["127.0.0.1"]}, True),
        ({"type": "limited", "allowed_hosts": ["*.example.com"]}, False),
    ],
)
async def test_a_limited_environment_reaches_the_servers_that_it_allows(
    tmp_path: Path, networking: dict[str, Any], reached: bool
) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(
            tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url}, networking=networking
        )
        events = await galley.turn(session.id, "go", say("done"))
        assert ("mcp__up__echo" in galley.script.requests[0].tool_names) == reached
        errors = [event.error for event in of_type(events, "session.error")]
        assert [error.type for error in errors] == ([] if reached else ["mcp_connection_failed_error"])
        assert all("allow_mcp_servers" in error.message for error in errors)
        assert (upstream.received != []) == reached


async def test_an_interrupt_ends_a_call_and_the_server_sees_its_client_go(tmp_path: Path) -> None:
    called, left = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        called.set()
        try:
            yield b": soon\n\n"
            await asyncio.Event().wait()
        finally:
            left.set()

    async def answer(got: Received) -> Response | None:
        return StreamingResponse(slowly(), media_type="text/event-stream") if got.method == "tools/call" else None

    async with scripted(answer) as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        async with asyncio.TaskGroup() as tasks:
            turn = tasks.create_task(galley.turn(session.id, "go", call("mcp__up__echo", text="x")))
            await called.wait()
            await galley.client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
        events = turn.result()
        (result,) = of_type(events, "agent.mcp_tool_result")
        assert (result.is_error, "interrupted" in text_of(result)) == (True, True)
        async with asyncio.timeout(10):
            await left.wait()


async def test_names_that_no_model_may_use_are_made_to_fit_and_found_again(tmp_path: Path) -> None:
    odd = {"name": "files.read/all ü", "inputSchema": {"type": "object"}}
    twin = {"name": "files_read_all__", "inputSchema": {"type": "object"}}
    async with scripted() as upstream, house(tmp_path) as galley:
        upstream.tools = [odd, twin]
        server = "my server: ü"
        session = await galley.session(tools=[mcp_toolset(server, default=ALLOW)], servers={server: upstream.url})
        await galley.turn(session.id, "go", say("done"))
        first, second = sorted(name for name in galley.script.requests[0].tool_names if name.startswith("mcp__"))
        events = await galley.turn(session.id, "on", call(first), call(second), say("done"))
        used = [(use.mcp_server_name, use.name) for use in of_type(events, "agent.mcp_tool_use")]
        assert sorted(used) == sorted([(server, odd["name"]), (server, twin["name"])])
        assert [result.is_error for result in of_type(events, "agent.mcp_tool_result")] == [None, None]


async def test_a_schema_that_the_model_would_be_refused_for_is_said_in_another_way(tmp_path: Path) -> None:
    odd = {"name": "either", "inputSchema": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}}
    never = {"name": "never", "inputSchema": {"type": "object", "properties": {"a b": {"type": "string"}}}}
    async with scripted() as upstream, house(tmp_path) as galley:
        upstream.tools = [odd, never]
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        events = await galley.turn(session.id, "go", call("mcp__up__either"), say("done"))
        assert [name for name in galley.script.requests[0].tool_names if "mcp__" in name] == ["mcp__up__either"]
        # The whole schema is the door's to check a call against.
        (result,) = of_type(events, "agent.mcp_tool_result")
        assert (result.is_error, "do not fit the input schema" in text_of(result)) == (True, True)


async def test_a_server_that_the_proxy_runs_is_named_by_stdio(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(STDIO_SERVER)
    config = tmp_path / "proxy.toml"
    config.write_text(
        f'[stdio.told]\ncommand = "python3"\nargs = ["{program}"]\ncredential_env = "TOKEN"\nread = ["{tmp_path}"]\n'
    )
    async with house(tmp_path, environ={"GALLEY_PROXY_CONFIG": str(config)}) as galley:
        vault = await galley.client.beta.vaults.create(display_name="Alice")
        auth: Any = {"type": "static_bearer", "mcp_server_url": "stdio:told", "token": "for-the-program-only"}
        await galley.client.beta.vaults.credentials.create(vault.id, auth=auth)
        session = await galley.session(
            tools=[mcp_toolset("told", default=ALLOW)], servers={"told": "stdio:told"}, vault_ids=[vault.id]
        )
        events = await galley.turn(session.id, "go", call("mcp__told__length"), say("done"))
        (result,) = of_type(events, "agent.mcp_tool_result")
        assert text_of(result) == str(len("for-the-program-only"))


async def test_an_agent_that_lost_a_server_reaches_it_no_more(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        await galley.turn(session.id, "go", call("mcp__up__echo", text="1"), say("done"))
        async with galley.proxy() as proxy:
            before = await _grants(proxy, session.id)
            update: Any = {"tools": [{"type": "agent_toolset_20260401"}], "mcp_servers": []}
            await galley.client.beta.sessions.update(session.id, agent=update)
            after = await _grants(proxy, session.id)
        assert before == {"live"}
        assert after == {"revoked", "live"}
        events = await galley.turn(session.id, "on", call("mcp__up__echo", text="2"), say("done"))
        assert "no tool named" in text_of(of_type(events, "agent.tool_result")[0])
        assert len(upstream.calls()) == 1


async def test_what_a_call_did_is_in_the_audit_under_its_event(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        events = await galley.turn(session.id, "go", call("mcp__up__echo", text="1"), say("done"))
        async with galley.http() as http:
            found = (await http.get("/v1/audit", params={"session_id": session.id, "decision": "allow"})).json()
        (line,) = [one for one in found["data"] if one["action"] == "mcp.tool"]
        assert (line["event_id"], line["server"], line["tool"]) == (
            of_type(events, "agent.mcp_tool_use")[0].id,
            "up",
            "echo",
        )


async def test_a_server_without_a_vault_proxy_says_so(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path, environ={"GALLEY_BROKER": "off"}) as galley:
        session = await galley.session(tools=[mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        events = await galley.turn(session.id, "go", say("done"))
        assert "GALLEY_BROKER=off" in of_type(events, "session.error")[0].error.message
        assert upstream.received == []


async def _grants(proxy: Any, session_id: str) -> set[str]:
    """What became of every grant of a session."""
    lines = (await proxy.get("/v1/audit", params={"session_id": session_id})).json()["data"]
    ids = {line["grant_id"] for line in lines if line["action"] == "grant.mint"}
    return {(await proxy.get(f"/v1/grants/{grant_id}")).json()["status"] for grant_id in ids}


STDIO_SERVER = """
import json, os, sys

for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), None
    if method == "initialize":
        info = {"name": "t", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
    elif method == "tools/list":
        result = {"tools": [{"name": "length", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": str(len(os.environ["TOKEN"]))}]}
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        answer |= {"result": result} if result is not None else {"error": {"code": -32601, "message": "no"}}
        print(json.dumps(answer), flush=True)
"""
