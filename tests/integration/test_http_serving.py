"""The server around the app: its address, its Unix socket, and an end that open streams cannot delay."""

import asyncio
import itertools
import json
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from galley_server.errors import ConfigError
from galley_server.http.serving import serve
from galley_server.http.sse import OPENING
from galley_server.http.stream import EventStream, Frame, Pace
from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Item:
    type: str
    body: bytes = b"{}"
    cursor: str | None = None


class Silent:
    """An app whose every answer is an event stream without events, or one that ignores the server's end."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.closing = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._stubborn = stubborn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        closing = asyncio.Event() if self._stubborn else self.closing
        try:
            await EventStream(nothing(), closing=closing, request_id="req_1", pace=Pace())(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def nothing() -> AsyncGenerator[Frame]:
    for item in await asyncio.Queue[list[Frame]]().get():
        yield item


async def test_a_free_port_is_found_and_told() -> None:
    app = Silent()
    async with asyncio.timeout(10), serve(app, host="127.0.0.1", port=0, closing=app.closing) as address:
        assert address.port > 0
        async with httpx2.AsyncClient() as client, client.stream("GET", address.url) as response:
            assert response.status_code == 200


async def test_an_answer_in_two_writes_does_not_wait_for_an_acknowledgement() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    loop = asyncio.get_running_loop()
    async with (
        httpx2.AsyncClient() as client,
        serve(app, host="127.0.0.1", port=0, closing=asyncio.Event()) as address,
    ):
        await client.get(address.url)
        began = loop.time()
        for _ in range(25):
            await client.get(address.url)
        assert loop.time() - began < 0.5  # with the delay it is a second at least


async def test_open_streams_end_with_the_server_and_end_whole() -> None:
    app, clients = Silent(), []
    async with asyncio.timeout(10), httpx2.AsyncClient(timeout=10) as client:
        async with serve(app, host="127.0.0.1", port=0, closing=app.closing) as address:
            for _ in range(5):
                clients.append(await client.send(client.build_request("GET", address.url), stream=True))
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2
        for response in clients:
            assert await response.aread() == OPENING
            await response.aclose()


async def test_a_request_that_will_not_end_is_cut_off_in_time() -> None:
    app = Silent(stubborn=True)
    async with asyncio.timeout(10), httpx2.AsyncClient(timeout=10) as client:
        async with serve(app, host="127.0.0.1", port=0, closing=app.closing, grace_s=1) as address:
            response = await client.send(client.build_request("GET", address.url), stream=True)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 3
        await app.cancelled.wait()
        await response.aclose()


async def test_a_reader_that_takes_nothing_cannot_hold_up_the_end() -> None:
    closing, flooded = asyncio.Event(), asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        async def items() -> AsyncGenerator[Frame]:
            for size in itertools.repeat(1 << 20):
                asyncio.get_running_loop().call_soon(flooded.set)
                yield Item("x" * size)

        await EventStream(items(), closing=closing, request_id="req_1", pace=Pace())(scope, receive, send)

    async with asyncio.timeout(10):
        async with serve(flood, host="127.0.0.1", port=0, closing=closing, grace_s=1) as address:
            _, writer = await asyncio.open_connection(address.host, address.port, limit=1)
            writer.write(b"GET / HTTP/1.1\r\nhost: galley\r\n\r\n")
            await flooded.wait()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 4
        writer.transport.abort()


async def test_the_unix_socket_serves_the_owner_only_and_leaves_with_the_server(tmp_path: Path) -> None:
    app, path = Silent(), tmp_path / "run" / "galley.sock"
    path.parent.mkdir()
    path.write_text("left by a server that is dead")
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with asyncio.timeout(10), httpx2.AsyncClient(transport=transport) as client:
        async with serve(app, host="127.0.0.1", port=0, closing=app.closing, uds=path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with client.stream("GET", "http://galley/") as response:
                assert response.status_code == 200
        assert not path.exists()


async def test_a_port_in_use_is_a_configuration_error_that_names_it() -> None:
    app = Silent()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"):
            async with serve(app, host="127.0.0.1", port=port, closing=app.closing):
                pass


async def test_a_host_that_is_not_here_is_a_configuration_error() -> None:
    app = Silent()
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        async with serve(app, host="192.0.2.1", port=0, closing=app.closing):
            pass


async def test_what_the_block_raises_leaves_as_it_was() -> None:
    app = Silent()
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(10), serve(app, host="127.0.0.1", port=0, closing=app.closing):
            raise ZeroDivisionError


async def exchanged(request: bytes, *, more: bytes = b"", times: int = 0) -> tuple[bytes, bytes]:
    """Send raw bytes, then `more` again and again; return the head and the body of what comes before the close."""
    app = Silent()
    async with asyncio.timeout(10), serve(app, host="127.0.0.1", port=0, closing=app.closing) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(request)
        with suppress(ConnectionError):
            for _ in range(times):
                writer.write(more)
                await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return head, body


@pytest.mark.parametrize(
    "request_bytes",
    [b"hello there\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
)
async def test_what_is_not_http_gets_the_envelope_and_the_door(request_bytes: bytes) -> None:
    head, body = await exchanged(request_bytes)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nx-should-retry: false\r\n" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nx-endless: "])
async def test_a_head_without_end_is_cut_off(begin: bytes) -> None:
    head, body = await exchanged(begin, more=b"x" * 20_000, times=5)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["message"] == "the request line and headers are larger than 64 KB"


async def test_a_large_head_that_ends_in_time_is_served() -> None:
    app = Silent()
    headers = {"x-large": "x" * 60_000}
    async with (
        httpx2.AsyncClient(headers=headers) as client,
        serve(app, host="127.0.0.1", port=0, closing=app.closing) as address,
        client.stream("GET", address.url) as answer,
    ):
        assert answer.status_code == 200
