"""What no rule changes passes the door byte for byte; credentials go in, and nothing of the client's own does."""

import asyncio
from pathlib import Path

import pytest
from galley_vault_proxy.mcp_door.limits import Limits
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from tests.integration.mcp_door_client import through
from tests.integration.mcp_door_kit import CANARY, open_door
from tests.integration.mcp_door_upstream import Received, Upstream, events, reply, scripted

pytestmark = pytest.mark.anyio

STREAM = (
    b": hello\r\n\r\n"
    b"id: 17\nretry: 250\ndata:\n\n"
    b'id: 18\nevent: message\ndata: {"jsonrpc":"2.0","method":"notifications/progress","params":{"x":1.50}}\n\n'
    b'data: {"jsonrpc": "2.0", "id": 1, "result": {"content": [], "vendorExt": 1e2}}\n\n'
)


async def test_a_stream_passes_byte_for_byte(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.method != "tools/call":
            return None
        return events(*(STREAM[i : i + 7] for i in range(0, len(STREAM), 7)))

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        got = await client.call("echo", {"text": "x"})

    assert got.content == STREAM
    assert got.headers["content-type"] == "text/event-stream"
    assert got.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("modern", [False, True])
async def test_a_message_reaches_the_server_as_it_was_sent(tmp_path: Path, modern: bool) -> None:
    async with scripted() as up, open_door(tmp_path) as door, through(door, up, modern=modern) as client:
        message = client.message("tools/call", {"name": "echo", "arguments": {"text": "é"}, "x-vendor": 1.0})
        raw = repr(message).replace("'", '"').encode()
        got = await client.send(message, raw=raw)

    assert got.json()["result"]["content"][0]["text"] == "é"
    assert up.calls()[0].body == raw


async def test_what_a_client_tells_of_itself_stays_with_the_door(tmp_path: Path) -> None:
    meta = {"x-codex-turn-metadata": {"session_id": "private"}, "progressToken": 5, "example.com/kept": 1}
    async with scripted() as up, open_door(tmp_path) as door, through(door, up) as client:
        params = {"name": "echo", "arguments": {"text": "x"}, "_meta": meta}
        await client.send(client.message("tools/call", params))

    assert up.calls()[0].message["params"]["_meta"] == {"progressToken": 5, "example.com/kept": 1}


async def test_the_credential_goes_in_and_nothing_of_the_clients_own(tmp_path: Path) -> None:
    async with scripted() as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            await client.call(
                "echo",
                {"text": "x"},
                **{
                    "cookie": "a=b",
                    "x-forwarded-for": "10.0.0.1",
                    "forwarded": "for=10.0.0.1",
                    "x-api-key": "mine",
                    "x-original-url": "/admin",
                    "accept-encoding": "gzip, br",
                    "mcp-param-region": "eu",
                    "mcp-from-the-future": "1",
                },
            )
    headers = up.calls()[0].headers
    assert headers["authorization"] == f"Bearer {CANARY}"
    assert headers["accept-encoding"] == "identity"
    assert headers["mcp-param-region"] == "eu"
    assert headers["mcp-from-the-future"] == "1"
    assert headers["host"] in up.url
    assert not {"cookie", "x-forwarded-for", "forwarded", "x-api-key", "x-original-url"} & headers.keys()
    assert sum(name == b"authorization" for name, _ in up.calls()[0].raw) == 1


async def test_a_session_passes_with_its_stream_its_events_and_its_end(tmp_path: Path) -> None:
    asked: list[Received] = []

    async def answer(got: Received) -> Response | None:
        asked.append(got)
        if got.verb == "GET":
            return events(b'id: 5\ndata: {"jsonrpc":"2.0","method":"notifications/x"}\n\n')
        return Response(status_code=204) if got.verb == "DELETE" else None

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        await client.initialize()
        accepted = await client.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        answered = await client.send({"jsonrpc": "2.0", "id": 4, "result": {}})
        headers = {**client.headers({}), "last-event-id": "4"}
        stream = await client.http.get(client.url, headers=headers)
        ended = await client.http.delete(client.url, headers=client.headers({}))
        session = client.session

    assert (accepted.status_code, answered.status_code, ended.status_code) == (202, 202, 204)
    assert stream.text == 'id: 5\ndata: {"jsonrpc":"2.0","method":"notifications/x"}\n\n'
    assert session is not None
    assert session != "upstream-session"
    assert {one.headers.get("mcp-session-id") for one in asked[1:]} == {"upstream-session"}
    assert [one.headers.get("last-event-id") for one in asked if one.verb == "GET"] == ["4"]


async def test_what_the_server_says_no_to_is_passed_on_with_its_status(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.method == "prompts/list":
            return reply(got.message, error={"code": -32601, "message": "no prompts"}, status=404)
        if got.method == "prompts/get":
            return PlainTextResponse("<h1>Bad gateway</h1> stack trace", 503, {"retry-after": "7"})
        return None

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        known = await client.send(client.message("prompts/list"))
        page = await client.send(client.message("prompts/get", {"name": "x"}))
        stream = await client.http.get(client.url, headers=client.headers({}))

    assert (known.status_code, known.json()["error"]["message"]) == (404, "no prompts")
    assert page.status_code == 503
    assert page.headers["retry-after"] == "7"
    assert "stack trace" not in page.text
    assert (stream.status_code, stream.headers["allow"]) == (405, "POST")


async def test_a_session_that_has_ended_is_told_so_before_the_tools_are_known(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.verb == "POST" and got.method != "initialize":
            return reply({"id": None}, error={"code": -32600, "message": "no such session"}, status=404)
        return None

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        await client.initialize()
        got = await client.call("echo", {"text": "x"})

    assert got.status_code == 404


async def test_a_server_without_tools_answers_for_itself(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.method in ("tools/list", "tools/call"):
            return reply(got.message, error={"code": -32601, "message": "no tools here"})
        return None

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        got = await client.call("echo", {"text": "x"})

    assert got.json()["error"]["message"] == "no tools here"


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        return RedirectResponse("http://127.0.0.1:1/elsewhere", 307) if got.method == "ping" else None

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            got = await client.send(client.message("ping"))

    assert got.status_code == 502
    assert "location" not in got.headers
    assert len(up.received) == 1


async def test_a_server_that_is_not_there_is_told_in_the_protocols_own_words(tmp_path: Path) -> None:
    up = Upstream("http://127.0.0.1:9/mcp")
    async with open_door(tmp_path) as door, through(door, up) as client:
        message = client.message("ping")
        got = await client.send(message)

    assert got.status_code == 502
    assert got.json()["id"] == message["id"]
    assert got.json()["error"]["data"] == {
        "type": "mcp_connection_failed_error",
        "mcp_server_name": "up",
        "nothing_done": True,
    }


async def test_a_private_address_is_not_connected_to(tmp_path: Path) -> None:
    up = Upstream("http://169.254.169.254/latest")
    async with open_door(tmp_path) as door:
        async with through(door, up) as client:
            got = await client.send(client.message("ping"))
        lines = await door.lines(server="up")

    assert got.status_code == 502
    assert "private or reserved" in got.json()["error"]["message"]
    assert lines[-1]["reason"] == "address_refused"


async def test_a_refused_credential_is_renewed_once_and_the_call_is_made_again(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.headers.get("authorization") == "Bearer stale-token-value":
            return Response("no", 401, {"www-authenticate": 'Bearer resource_metadata="https://x"'})
        return None

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = "stale-token-value"
        door.credentials.renewals[up.url] = "fresh-token-value"
        async with through(door, up) as client:
            got = await client.call("echo", {"text": "hi"})
        lines = await door.lines(action="mcp.tool")

    assert got.json()["result"]["content"][0]["text"] == "hi"
    assert len(up.calls()) == 1
    assert [credential for credential, _ in door.credentials.refreshed] == [lines[-1]["credential_id"]]
    assert lines[-1]["credential_version"] == 2


@pytest.mark.parametrize("token", [None, "refused-token-value"])
async def test_a_servers_401_is_never_relayed(tmp_path: Path, token: str | None) -> None:
    async def answer(got: Received) -> Response | None:
        return Response("no", 401, {"www-authenticate": 'Bearer resource_metadata="https://evil"'})

    async with scripted(answer) as up, open_door(tmp_path) as door:
        if token is not None:
            door.credentials.tokens[up.url] = token
        async with through(door, up) as client:
            got = await client.call("echo", {"text": "hi"})

    assert got.status_code == 502
    assert "www-authenticate" not in got.headers
    assert got.json()["error"]["data"]["type"] == "mcp_authentication_failed_error"
    assert "evil" not in got.text


async def test_the_newer_era_cancels_by_hanging_up(tmp_path: Path) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def answer(got: Received) -> Response | None:
        if got.method != "tools/call":
            return None
        begun.set()
        return events(b": begun\n\n", never)

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up, modern=True) as client:
        message = client.message("tools/call", {"name": "echo", "arguments": {"text": "x"}})
        async with client.http.stream("POST", client.url, json=message, headers=client.headers(message)) as got:
            await begun.wait()
            assert got.status_code == 200
        line = await door.line(action="mcp.tool")

    assert line["reason"] == "client_gone"


async def test_an_idle_stream_is_kept_alive_and_ended_in_time(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        return events(b"data: {}\n\n", asyncio.Event()) if got.verb == "GET" else None

    limits = Limits(keepalive_s=0.05, stream_s=0.3)
    async with scripted(answer) as up, open_door(tmp_path, limits=limits) as door, through(door, up) as client:
        got = await client.http.get(client.url, headers=client.headers({}))

    assert got.text.startswith("data: {}\n\n:\n\n:\n\n")


async def test_a_call_that_takes_too_long_gets_an_answer_that_says_so(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        return events(b": begun\n\n", asyncio.Event()) if got.method == "tools/call" else None

    limits = Limits(call_s=0.3)
    async with scripted(answer) as up, open_door(tmp_path, limits=limits) as door, through(door, up) as client:
        got = await client.call("echo", {"text": "x"})

    assert '"code":-32603' in got.text
    assert "longer than" in got.text


async def test_one_line_tells_of_each_use(tmp_path: Path) -> None:
    async with scripted() as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            await client.call("echo", {"text": "hi"}, **{"galley-event-id": "sevt_1"})
        lines = await door.lines(action="mcp.tool")

    assert len(lines) == 1
    line = lines[0]
    assert (line["decision"], line["tool"], line["server"], line["event_id"]) == ("allow", "echo", "up", "sevt_1")
    assert line["session_id"] == "sesn_1"
    assert line["credential_version"] == 1
    assert isinstance(line["bytes"], int)
    assert line["bytes"] > 0
    assert isinstance(line["duration_ms"], float)
    assert CANARY not in str(lines)
