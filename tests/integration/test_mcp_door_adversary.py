"""Somebody in the sandbox with a grant in hand, who wants what the grant does not give."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from galley_vault_proxy.grant.narrow import narrow
from galley_vault_proxy.http import serving
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.preamble import greeting
from starlette.responses import Response

from tests.integration.mcp_door_client import bare, through
from tests.integration.mcp_door_kit import CANARY, SERVICE_KEY, Opened, open_door
from tests.integration.mcp_door_upstream import Received, Upstream, events, scripted

pytestmark = pytest.mark.anyio


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Opened]:
    async with open_door(tmp_path) as opened:
        yield opened


@pytest.fixture
async def up() -> AsyncIterator[Upstream]:
    async with scripted() as upstream:
        yield upstream


async def raw(door: Opened, request: bytes, *, limit: int = 1 << 16) -> bytes:
    """Bytes as no client library would send them."""
    parts = urlsplit(door.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(5):
            return await reader.read(limit)
    finally:
        writer.close()


@pytest.mark.parametrize("token", ["", "galley1.e30.AAAA", "nonsense", "sk-ant-oat01-x"])
async def test_without_a_grant_nothing_opens(door: Opened, up: Upstream, token: str) -> None:
    async with bare(f"{door.url}/up", token or "x") as client:
        got = await client.send(client.message("ping"), {"authorization": f"Bearer {token}" if token else ""})

    assert got.status_code == 401
    assert "resource_metadata" not in got.headers["www-authenticate"]
    assert up.received == []


async def test_another_server_is_not_there(door: Opened, up: Upstream) -> None:
    async with scripted() as other, through(door, up) as client:
        await door.token({"other": other.url}, session="sesn_2")
        client.url = f"{door.url}/other"
        got = await client.send(client.message("ping"))
        lines = await door.lines(server="other")

    assert got.status_code == 404
    assert other.received == []
    assert (lines[-1]["decision"], lines[-1]["reason"]) == ("deny", "server_not_granted")


@pytest.mark.parametrize("modern", [False, True])
async def test_another_tool_is_neither_listed_nor_called(door: Opened, up: Upstream, modern: bool) -> None:
    async with through(door, up, tools={"echo"}, modern=modern) as client:
        listed = await client.send(client.message("tools/list"))
        refused = await client.call("delete_all")
        unknown = await client.call("no_such_tool")

    assert [tool["name"] for tool in listed.json()["result"]["tools"]] == ["echo"]
    assert refused.json()["error"] == {"code": -32602, "message": "Unknown tool: delete_all"}
    assert unknown.json()["error"] == {"code": -32602, "message": "Unknown tool: no_such_tool"}
    assert refused.status_code == unknown.status_code == (400 if modern else 200)
    assert up.calls() == []


async def test_a_grant_for_tools_opens_no_other_way_to_the_data(door: Opened, up: Upstream) -> None:
    async with through(door, up, tools={"echo"}) as client:
        for method in ("resources/read", "prompts/get", "completion/complete", "x-vendor/dump"):
            got = await client.send(client.message(method, {"uri": "file:///etc/passwd", "name": "x"}))
            assert got.json()["error"]["code"] == -32601
        told = await client.send({"jsonrpc": "2.0", "method": "x-vendor/told"})

    assert told.status_code == 403
    assert up.received == []


async def test_a_narrowed_grant_is_held_to_what_is_left_of_it(door: Opened, up: Upstream) -> None:
    token = narrow(await door.token({"up": up.url}), tools=["echo"])
    async with bare(f"{door.url}/up", token) as client:
        refused = await client.call("delete_all")
        allowed = await client.call("echo", {"text": "hi"})

    assert refused.json()["error"]["code"] == -32602
    assert allowed.json()["result"]["content"][0]["text"] == "hi"


async def test_a_grant_is_worth_nothing_after_its_revocation(door: Opened, up: Upstream) -> None:
    async with through(door, up) as client:
        assert (await client.call("echo", {"text": "hi"})).status_code == 200
        await door.registry.revoke_session("sesn_1")
        got = await client.call("echo", {"text": "again"})

    assert got.status_code == 401
    assert len(up.calls()) == 1


@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_revocation_ends_an_open_stream_within_a_second(tmp_path: Path, verb: str) -> None:
    async def answer(got: Received) -> Response | None:
        return events(b": begun\n\n", asyncio.Event()) if got.verb == "GET" or got.method == "tools/call" else None

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        message = client.message("tools/call", {"name": "echo", "arguments": {"text": "x"}})
        body = json.dumps(message) if verb == "POST" else None
        async with client.http.stream(verb, client.url, content=body, headers=client.headers(message)) as got:
            pieces = got.aiter_bytes()
            assert await anext(pieces) == b": begun\n\n"
            await door.registry.revoke_session("sesn_1")
            async with asyncio.timeout(1):
                assert [piece async for piece in pieces] == []


async def test_a_grant_of_a_tunnel_works_in_that_tunnel_only(tmp_path: Path, up: Upstream) -> None:
    path = tmp_path / "door.sock"
    async with open_door(tmp_path, uds=path) as door:
        token = await door.token({"up": up.url}, tunnel="tun_1")
        async with bare(f"{door.url}/up", token) as client:
            stolen = await client.call("echo", {"text": "x"})
        body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
        request = (
            b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"accept: application/json, text/event-stream\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
        ) % (token.encode(), len(body), body)
        answers = []
        for tunnel in ("tun_1", "tun_2"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(greeting(SERVICE_KEY, tunnel) + request)
            async with asyncio.timeout(5):
                answers.append((await reader.read()).partition(b"\r\n")[0])
            writer.close()

    assert stolen.status_code == 401
    assert answers == [b"HTTP/1.1 200 OK", b"HTTP/1.1 401 Unauthorized"]


async def test_another_sessions_mcp_session_is_not_there(door: Opened, up: Upstream) -> None:
    async with through(door, up) as mine, through(door, up, session="sesn_2") as theirs:
        await mine.initialize()
        before = len(up.received)
        for stolen in (mine.session, "upstream-session", f"upstream-session.{'A' * 22}"):
            theirs.session = stolen
            got = await theirs.send(theirs.message("ping"))
            assert got.status_code == 404
            gone = await theirs.http.delete(theirs.url, headers=theirs.headers({}))
            assert gone.status_code == 404

    assert len(up.received) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"mcp-name": "delete_all"},
        {"mcp-name": "=?base64?ZGVsZXRlX2FsbA==?="},
        {"mcp-method": "ping"},
        {"mcp-method": ""},
        {"mcp-name": ""},
        {"mcp-protocol-version": "2027-01-01"},
    ],
)
async def test_headers_that_name_something_else_are_refused(
    door: Opened, up: Upstream, headers: dict[str, str]
) -> None:
    async with through(door, up, modern=True) as client:
        got = await client.call("echo", {"text": "x"}, **headers)

    assert (got.status_code, got.json()["error"]["code"]) == (400, -32020)
    assert up.calls() == []


async def test_a_header_that_is_there_twice_is_refused(door: Opened, up: Upstream) -> None:
    token = (await door.token({"up": up.url})).encode()
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    head = (
        b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n"
    ) % (token, len(body))
    for extra in (b"mcp-method: a\r\nmcp-method: ping\r\n", b"authorization: Bearer x\r\n", b"host: other\r\n"):
        got = await raw(door, head + extra + b"\r\n" + body)
        assert got.startswith(b"HTTP/1.1 400"), extra

    assert up.received == []


@pytest.mark.parametrize(
    "body",
    [
        b'[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"delete_all"}}]',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"delete_all"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","name":"delete_all"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","\\u006eame":"delete_all"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"v":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 70 + b"1" + b"}" * 71,
        b"\x1f\x8b\x08\x00",
        b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"ping"}',
        b"",
    ],
)
async def test_a_body_with_two_readings_is_refused(door: Opened, up: Upstream, body: bytes) -> None:
    async with through(door, up, tools={"echo"}) as client:
        got = await client.send({}, raw=body)

    assert got.status_code == 400
    assert got.json()["error"]["code"] in (-32700, -32600)
    assert up.received == []


async def test_only_json_is_taken(door: Opened, up: Upstream) -> None:
    async with through(door, up) as client:
        got = await client.send(client.message("ping"), {"content-type": "text/plain"})

    assert got.status_code == 415
    assert up.received == []


async def test_an_oversized_body_is_refused(door: Opened, up: Upstream) -> None:
    async with through(door, up) as client:
        got = await client.call("echo", {"text": "x" * (5 << 20)})

    assert got.status_code == 413
    assert up.received == []


async def test_a_body_that_never_ends_is_not_read_for_ever(tmp_path: Path, up: Upstream) -> None:
    async with open_door(tmp_path, limits=Limits(body=1000, body_s=0.3)) as door:
        token = (await door.token({"up": up.url})).encode()
        head = (
            b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %b\r\n"
        ) % token
        slow = await raw(door, head + b"content-length: 500\r\n\r\n{")
        chunked = await raw(door, head + b"transfer-encoding: chunked\r\n\r\n" + b"64\r\n" + b"x" * 100 + b"\r\n")
        large = await raw(door, head + b"transfer-encoding: chunked\r\n\r\n" + b"fff\r\n" + b"x" * 4095 + b"\r\n")

    assert slow.startswith(b"HTTP/1.1 408")
    assert chunked.startswith(b"HTTP/1.1 408")
    assert large.startswith(b"HTTP/1.1 413")
    assert up.received == []


async def test_one_request_stays_one_request(door: Opened, up: Upstream) -> None:
    """Request splitting: whatever the framing claims, the server gets what the door has read, framed anew."""
    token = (await door.token({"up": up.url}, tools={"echo"})).encode()
    inner = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete_all"}}'
    smuggled = b"POST /mcp HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(inner), inner)
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    head = (
        b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer %b\r\n"
    ) % token
    await raw(door, head + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % len(body) + smuggled)
    await raw(door, head + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + smuggled)
    await raw(door, head + b"mcp-name: x\r\n y: z\r\ncontent-length: %d\r\n\r\n" % len(body) + body + smuggled)
    await raw(door, head + b"content-length: %d\r\n\r\n" % len(body) + body + smuggled)

    assert up.calls() == []
    assert all(one.message["method"] in ("ping",) for one in up.received)


@pytest.mark.parametrize("path", ["/mcp/up/../other", "/mcp/up%2f..%2fother", "/mcp//up", "/mcp/up/x", "/mcp/"])
async def test_the_path_leads_nowhere_else(door: Opened, up: Upstream, path: str) -> None:
    token = (await door.token({"up": up.url})).encode()
    got = await raw(
        door,
        b"POST %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %b\r\ncontent-length: 40\r\n\r\n"
        % (path.encode(), token)
        + b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
    )
    assert got.startswith(b"HTTP/1.1 404")
    assert up.received == []


async def test_a_flood_is_held_back(tmp_path: Path, up: Upstream) -> None:
    async with open_door(tmp_path, limits=Limits(per_second=0.001, burst=3)) as door, through(door, up) as client:
        statuses = [(await client.send(client.message("ping"))).status_code for _ in range(5)]
        got = await client.send(client.message("ping"))

    assert statuses == [200, 200, 200, 429, 429]
    assert int(got.headers["retry-after"]) > 0
    assert len(up.received) == 3


@pytest.mark.parametrize("sent", [b"", b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\n"])
async def test_connections_on_which_nothing_happens_shut_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(serving, "MOST_WAITING", 20)

    async def answer(got: Received) -> Response | None:
        return events(b": begun\n\n", asyncio.Event()) if got.verb == "GET" else None

    async with (
        scripted(answer) as up,
        open_door(tmp_path) as door,
        through(door, up) as client,
        client.http.stream("GET", client.url, headers=client.headers({})) as stream,
        idle_connections(door, 60, sent) as idle,
    ):
        pieces = stream.aiter_bytes()
        await anext(pieces)
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                assert await idle[0].read() == b""
        assert (await client.call("echo", {"text": "x"})).status_code == 200
        await door.registry.revoke_session("sesn_1")
        async with asyncio.timeout(5):
            # It was open all the while: what ends it is the revocation.
            assert [piece async for piece in pieces] == []


@asynccontextmanager
async def idle_connections(door: Opened, count: int, sent: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    parts = urlsplit(door.url)
    opened = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(count)]
    try:
        for _, writer in opened:
            writer.write(sent)
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("name", [b"mcp-param-region", b"mcp-something-new"])
async def test_no_header_of_the_protocol_may_be_there_twice(door: Opened, up: Upstream, name: bytes) -> None:
    token = (await door.token({"up": up.url})).encode()
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    got = await raw(
        door,
        b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n%b: a\r\n%b: a\r\n\r\n%b"
        % (token, len(body), name, name, body),
    )

    assert got.startswith(b"HTTP/1.1 400")
    assert up.received == []


@pytest.mark.parametrize("header", [b"mcp-name: a\x00b", b"mcp-name: a\rb", b"mcp-na\x00me: a", b"mcp-name : a"])
async def test_a_header_with_a_break_in_it_never_gets_up(door: Opened, up: Upstream, header: bytes) -> None:
    token = (await door.token({"up": up.url})).encode()
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    got = await raw(
        door,
        b"POST /mcp/up HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n%b\r\n\r\n%b" % (token, len(body), header, body),
    )

    assert got.startswith(b"HTTP/1.1 400")
    assert up.received == []


async def test_the_grant_itself_never_goes_up_nor_into_the_audit(door: Opened, up: Upstream) -> None:
    async with through(door, up) as client:
        await client.call("echo", {"text": "x"})
        await client.call(client.token)
        lines = await door.lines()

    assert client.token not in str([one.raw for one in up.received])
    assert client.token not in str(lines)


async def test_bad_arguments_never_reach_the_server_and_the_model_is_told_what_is_wrong(
    door: Opened, up: Upstream
) -> None:
    async with through(door, up) as client:
        got = await client.call("echo", {"text": 5})

    result = got.json()["result"]
    assert result["isError"] is True
    assert "arguments.text: 5 is not of type 'string'" in result["content"][0]["text"]
    assert up.calls() == []


async def test_a_canary_that_the_client_sends_is_not_taken_for_ours(door: Opened, up: Upstream) -> None:
    """What comes back is redacted, so a sandbox that guesses learns nothing from a server that echoes."""
    door.credentials.tokens[up.url] = CANARY
    async with through(door, up) as client:
        got = await client.call("echo", {"text": f"is it {CANARY}?"})

    assert CANARY not in got.text
