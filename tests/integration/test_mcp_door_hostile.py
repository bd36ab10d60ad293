"""A server that is out to harm: it never ends, floods, lies about its framing, fills what is kept. It harms nobody."""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from galley_vault_proxy.mcp_door import pins
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.pins import PinPlace
from starlette.responses import Response

from tests.integration.mcp_door_client import Bare, through
from tests.integration.mcp_door_kit import CANARY, Opened, open_door
from tests.integration.mcp_door_upstream import Received, Upstream, events, reply, scripted

pytestmark = pytest.mark.anyio

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD = b'{"jsonrpc":"2.0","id":%d,"result":{}}'


@asynccontextmanager
async def raw(talk: Talk) -> AsyncIterator[Upstream]:
    """A server of bytes: `talk` is called for each connection."""
    talking: set[asyncio.Task[None]] = set()

    async def contained(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            talking.discard(task)
            writer.close()

    listener = socket.socket()
    # Small, so that what is not read stays with whoever sends it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(contained, sock=listener)
    try:
        yield Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp")
    finally:
        server.close()
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)


async def request_on(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next request of a connection; its message."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    message = json.loads(await reader.readexactly(length))
    assert isinstance(message, dict)
    return message


def says(answer: bytes) -> Talk:
    """Answer the first request with these bytes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_on(reader)
        writer.write(answer)
        await writer.drain()

    return talk


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"content-type: application/json", *lines, b"", b""))


async def ping(client: Bare) -> Any:
    return await client.send(client.message("ping"))


LIES = {
    "no HTTP": b"hello, who is there?\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "two lengths": head(b"content-length: 37", b"content-length: 5") + GOOD % 1,
    "a length and chunks": head(b"content-length: 37", b"transfer-encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "a coding of its own": head(b"transfer-encoding: gzip") + GOOD % 1,
    "a bad chunk": head(b"transfer-encoding: chunked") + b"zz\r\nhello\r\n",
    "half an answer": head(b"content-length: 500") + GOOD % 1,
    "a header with a NUL": head(b"mcp-x: a\x00b", b"content-length: 37") + GOOD % 1,
    "nothing at all": b"",
    "two codings": head(b"content-encoding: identity", b"content-encoding: gzip", b"content-length: 37") + GOOD % 1,
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_answer_that_cannot_be_read_in_one_way_is_not_read(tmp_path: Path, lie: str) -> None:
    async with (
        asyncio.timeout(20),
        raw(says(LIES[lie])) as up,
        open_door(tmp_path) as door,
        through(door, up) as client,
    ):
        got = await ping(client)
        again = await ping(client)

    assert (got.status_code, again.status_code) == (502, 502)
    assert got.json()["error"]["data"]["type"] == "mcp_connection_failed_error"


ENDLESS = {
    "headers": head()[:-2] + b"\x00".join((b"x: y\r\n", b"x: y\r\n")),
    "one header": b"HTTP/1.1 200 OK\r\nx: \x00y",
    "early answers": b"\x00HTTP/1.1 100 Continue\r\n\r\n",
    "trailers": head(b"transfer-encoding: chunked") + b"0\r\n\x00x: y\r\n",
    "a chunk's extension": head(b"transfer-encoding: chunked") + b"5;\x00x=y",
    "blank lines": b"\x00\r\n",
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_never_ends_is_cut_off_however_little_of_it_is_an_answer(tmp_path: Path, what: str) -> None:
    begun, _, more = ENDLESS[what].partition(b"\x00")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_on(reader)
        writer.write(begun)
        while True:
            writer.write(more * 1000)
            await writer.drain()

    async with asyncio.timeout(20), raw(talk) as up, open_door(tmp_path) as door, through(door, up) as client:
        assert (await ping(client)).status_code == 502


async def test_a_second_answer_to_one_question_is_nobodys(tmp_path: Path) -> None:
    """Else a server would answer the next question before it is asked, perhaps another caller's."""
    connections = itertools.count()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        next(connections)
        while True:
            message = await request_on(reader)
            body = GOOD % message["id"]
            planted = b'{"jsonrpc":"2.0","id":%d,"result":{"planted":1}}' % (message["id"] + 1)
            for one in (body, planted):
                writer.write(head(b"content-length: %d" % len(one)) + one)
            await writer.drain()

    async with asyncio.timeout(20), raw(talk) as up, open_door(tmp_path) as door, through(door, up) as client:
        answers = [(await ping(client)).json()["result"] for _ in range(3)]

    assert answers == [{}, {}, {}]
    assert next(connections) == 3


async def test_a_connection_is_used_again(tmp_path: Path) -> None:
    connections = itertools.count()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        next(connections)
        while True:
            body = GOOD % (await request_on(reader))["id"]
            writer.write(
                b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + head(b"content-length: %d" % len(body)) + body
            )
            await writer.drain()

    async with asyncio.timeout(20), raw(talk) as up, open_door(tmp_path) as door, through(door, up) as client:
        answers = [(await ping(client)).status_code for _ in range(3)]

    assert answers == [200, 200, 200]
    assert next(connections) == 1


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = GOOD % (await request_on(reader))["id"]
        writer.write(head() + body)
        await writer.drain()

    async with asyncio.timeout(20), raw(talk) as up, open_door(tmp_path) as door, through(door, up) as client:
        assert (await ping(client)).json()["result"] == {}


async def test_a_server_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    limits = Limits(send_s=0.2, body=64 << 20)
    async with (
        asyncio.timeout(20),
        raw(talk) as up,
        open_door(tmp_path, limits=limits) as door,
        through(door, up) as client,
    ):
        got = await client.send(client.message("ping", {"x": "y" * (24 << 20)}))

    assert got.status_code == 502
    assert "does not read" in got.json()["error"]["message"]


@pytest.mark.parametrize("modern", [False, True])
async def test_an_event_that_is_too_large_is_told_to_the_caller(tmp_path: Path, modern: bool) -> None:
    """Passed on in the older era; in the newer one, which this server does not speak, over the bridge."""

    async def answer(got: Received) -> Response | None:
        if got.headers.get("mcp-protocol-version") == "2026-07-28":
            return reply({"id": None}, error={"code": -32000, "message": "unsupported"}, status=400)
        return events(b"data: " + b"x" * (2 << 20)) if got.method == "tools/call" else None

    limits = Limits(event=1 << 20)
    async with (
        scripted(answer) as up,
        open_door(tmp_path, limits=limits) as door,
        through(door, up, modern=modern) as client,
    ):
        got = await client.call("echo", {"text": "x"})

    assert "larger than 1 MiB" in got.text
    assert '"code":-32603' in got.text


async def test_a_flood_of_events_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    flood = b'data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n' * 1000

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        while True:
            writer.write(flood)
            await writer.drain()

    async with (
        asyncio.timeout(30),
        raw(talk) as hostile,
        scripted() as up,
        open_door(tmp_path) as door,
        through(door, hostile) as flooded,
        through(door, up, session="sesn_2") as client,
        flooded.http.stream("GET", flooded.url, headers=flooded.headers({})) as stream,
    ):
        pieces = stream.aiter_bytes()
        for _ in range(20):
            await anext(pieces)
            assert (await client.call("echo", {"text": "x"})).status_code == 200


async def test_names_that_a_server_makes_up_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "MOST_PINS", 10)
    numbers = itertools.count()

    async def answer(got: Received) -> Response | None:
        if got.method != "tools/list":
            return None
        return reply(got.message, {"tools": [{"name": f"t{next(numbers)}", "inputSchema": {}} for _ in range(4)]})

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        listed = [await client.send(client.message("tools/list")) for _ in range(5)]
        kept = await door.pins.load(PinPlace(up.url, ""))
        lines = await door.lines(action="mcp.pin", decision="deny")

    assert [len(one.json()["result"]["tools"]) for one in listed] == [4, 4, 2, 0, 0]
    assert len(kept) == 10
    assert {line["reason"] for line in lines} == {"definition_not_kept"}


async def test_a_definition_that_is_too_large_to_keep_is_held_back(door: Opened) -> None:
    async with scripted() as up, through(door, up) as client:
        up.tools[0]["description"] = "x" * pins.LARGEST_PIN
        listed = await client.send(client.message("tools/list"))
        called = await client.call("echo", {"text": "x"})

    assert [tool["name"] for tool in listed.json()["result"]["tools"]] == ["delete_all"]
    assert called.json()["result"]["isError"] is True
    assert up.calls() == []


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Opened]:
    async with open_door(tmp_path) as opened:
        yield opened


async def test_a_list_of_tools_without_end_is_given_up(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.method != "tools/list":
            return None
        return reply(got.message, {"tools": [], "pad": "x" * (1 << 19), "nextCursor": str(len(got.body))})

    limits = Limits(answer=1 << 20)
    async with scripted(answer) as up, open_door(tmp_path, limits=limits) as door, through(door, up) as client:
        got = await client.call("echo", {"text": "x"})

    assert got.status_code == 502
    assert "too large" in got.json()["error"]["message"]


async def test_a_server_that_asks_without_end_during_a_call_gets_no_answers(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.headers.get("mcp-protocol-version") == "2026-07-28":
            return reply({"id": None}, error={"code": -32000, "message": "unsupported"}, status=400)
        if got.method != "tools/call":
            return None
        ask = b'data: {"jsonrpc":"2.0","id":%d,"method":"elicitation/create","params":{}}\n\n'
        return events(b"".join(ask % number for number in range(1000)), asyncio.Event())

    able: dict[str, Any] = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
    async with (
        asyncio.timeout(20),
        scripted(answer) as up,
        open_door(tmp_path) as door,
        through(door, up, modern=True) as client,
    ):
        params = {"name": "echo", "arguments": {"text": "x"}, "_meta": able}
        got = (await client.send(client.message("tools/call", params))).json()["result"]
        again = await client.send(client.message("tools/call", {**params, "requestState": got["requestState"]}))

    assert len(got["inputRequests"]) <= 32
    assert "too many things" in again.text


async def test_a_large_answer_that_looks_like_nothing_but_escapes_is_read_aside(tmp_path: Path) -> None:
    said = "\\u0063\\u0061" * 40_000

    async def answer(got: Received) -> Response | None:
        if got.method != "tools/call":
            return None
        body = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"%s"}]}}'
        return Response(body % (got.message["id"], said.encode()), media_type="application/json")

    async with asyncio.timeout(60), scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            got = await client.call("echo", {"text": "x"})

    assert got.json()["result"]["content"][0]["text"] == "ca" * 40_000
