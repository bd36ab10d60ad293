"""`galley mcp` with GALLEY_URL: the stdio shim over HTTP to a server elsewhere."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from galley_server.errors import ConfigError
from galley_server.mcp.lines import MAX_CLIENT_LINE
from galley_server.mcp.upstream import Address
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.integration.mcp_server_program import API_KEY
from tests.integration.test_mcp_http import answers, free_port, serving
from tests.integration.test_mcp_shim import ShimWire, environ, over_stdio, starts, until
from tests.integration.test_mcp_socket import ENVELOPE, INITIALIZE, call

pytestmark = pytest.mark.anyio

SHIM = [sys.executable, "-m", "galley_server.mcp.shim"]


@asynccontextmanager
async def remote(home: Path, url: str, key: str = API_KEY) -> AsyncIterator[ShimWire]:
    async with over_stdio(home, SHIM, extra={"GALLEY_URL": url, "GALLEY_API_KEY": key}) as wire:
        yield wire


@asynccontextmanager
async def server_process(home: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    program = str(Path(__file__).with_name("mcp_server_program.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, program, str(port), env=environ(home))
    try:
        await until(lambda: answers(port))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def initialise(wire: ShimWire) -> dict[str, Any]:
    answer = await wire.ask({"id": 0, "method": "initialize", "params": INITIALIZE})
    await wire.send({"method": "notifications/initialized"})
    return answer


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_sdks_client_works_in_every_mode(tmp_path: Path, mode: str) -> None:
    async with serving(tmp_path) as face:
        env = environ(tmp_path) | {"GALLEY_URL": str(face.base_url), "GALLEY_API_KEY": API_KEY}
        parameters = StdioServerParameters(command=SHIM[0], args=SHIM[1:], env=env)
        async with Client(stdio_client(parameters), mode=mode) as client:
            tools = await client.list_tools()
            results = await asyncio.gather(*(client.call_tool("echo", {"text": str(n)}) for n in range(20)))
    assert "echo" in {tool.name for tool in tools.tools}
    assert [result.structured_content for result in results] == [{"result": str(n)} for n in range(20)]


async def test_a_session_is_ended_when_stdin_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        await initialise(wire)
        assert face.endpoint.sessions == 1
        wire.writer.close()
        assert await wire.process.wait() == 0
        assert face.endpoint.sessions == 0


async def test_what_a_legacy_server_says_unasked_arrives(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        await initialise(wire)
        # The stream has no sign of being open; a change published before it is lost, so publish until one arrives.
        message: dict[str, Any] = {}
        number = 0
        while message.get("method") != "notifications/tools/list_changed":
            number += 1
            message = await wire.ask(call(number, "announce", modern=False))


async def test_a_listen_stream_works_through_the_shim_and_is_cancelled_by_hanging_up(tmp_path: Path) -> None:
    params = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        acknowledged = await wire.ask({"id": "l", "method": "subscriptions/listen", "params": params})
        await wire.send(call(1, "announce"))
        both = [await wire.receive(), await wire.receive()]
        await wire.send({"method": "notifications/cancelled", "params": {"requestId": "l"}})
        await until(lambda: not face.endpoint._exchanges)
        after = await wire.ask(call(2, "echo", text="hi"))
    assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
    assert "notifications/tools/list_changed" in {message.get("method") for message in both}
    assert after["id"] == 2


async def test_a_cancelled_modern_call_is_cancelled_there_and_not_answered_here(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        await wire.send(call(1, "count"))
        await until((tmp_path / "effects").exists)
        await wire.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
        await until((tmp_path / "cancelled").exists)
        after = await wire.ask(call(2, "echo", text="hi"))
    assert after["id"] == 2


async def test_the_end_of_stdin_cancels_a_call_under_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        await wire.send(call(1, "count"))
        await until((tmp_path / "effects").exists)
        wire.writer.close()
        assert await wire.process.wait() == 0
        await until((tmp_path / "cancelled").exists)


@pytest.mark.parametrize("name", ["écho", " echo", "=?base64?eA==?="])
async def test_a_name_that_is_no_header_value_arrives_as_it_is(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        answer = await wire.ask(call(1, name))
    assert "Unknown tool" in json.dumps(answer)


async def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url), key="wrong") as wire:
        answer = await wire.ask({"id": 1, "method": "initialize", "params": INITIALIZE})
    assert answer["id"] == 1
    assert "GALLEY_API_KEY" in answer["error"]["message"]


async def test_an_error_of_the_server_keeps_its_words_and_gets_the_requests_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        answer = await wire.ask(call(5, "echo", modern=False, text="no session"))
    assert (answer["id"], answer["error"]["code"]) == (5, -32600)
    assert "initialize" in answer["error"]["message"]


async def test_an_address_where_nobody_answers_is_an_error(tmp_path: Path) -> None:
    with free_port() as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with remote(tmp_path, url) as wire:
            answer = await wire.ask(call(1, "echo", text="hi"))
    assert f"{url}/mcp cannot be reached" in answer["error"]["message"]


async def test_a_server_that_is_not_galley_is_an_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, f"{face.base_url}/other") as wire:
        answer = await wire.ask(call(1, "echo", text="hi"))
    assert "HTTP 404" in answer["error"]["message"]


@pytest.mark.parametrize("modern", [True, False])
async def test_a_client_goes_on_after_its_server_was_killed_and_came_back(tmp_path: Path, modern: bool) -> None:
    with free_port() as bound:
        port = bound.getsockname()[1]
    async with asyncio.timeout(40), remote(tmp_path, f"http://127.0.0.1:{port}") as wire:
        async with server_process(tmp_path, port) as process:
            if not modern:
                await initialise(wire)
            await wire.send(call(1, "count", modern=modern))
            await until((tmp_path / "effects").exists)
            os.kill(process.pid, signal.SIGKILL)
            error = await wire.receive()
        async with server_process(tmp_path, port):
            answer = await wire.ask(call(2, "echo", modern=modern, text="back"))
    assert (error["id"], answer["id"]) == (1, 2)
    assert "may or may not have taken effect" in error["error"]["message"]
    assert answer["result"]["structuredContent"] == {"result": "back"}
    assert len(starts(tmp_path)) == 2


async def test_a_message_over_the_limit_is_an_error_with_its_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, remote(tmp_path, str(face.base_url)) as wire:
        error = await wire.ask(call("big", "echo", text="x" * MAX_CLIENT_LINE))
    assert error["id"] == "big"


async def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-keyout", str(key), "-out", str(certificate), "-addext", "subjectAltName=DNS:localhost"]
    make = await asyncio.create_subprocess_exec("openssl", "req", *options.split(), *names, stderr=subprocess.DEVNULL)
    assert await make.wait() == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    async with server:
        async with remote(tmp_path, url) as wire:
            refused = await wire.ask(call(1, "echo", text="hi"))
        trusting = {"GALLEY_URL": url, "GALLEY_API_KEY": API_KEY, "SSL_CERT_FILE": str(certificate)}
        async with over_stdio(tmp_path, SHIM, extra=trusting) as wire:
            trusted = await wire.ask(call(1, "echo", text="hi"))
    assert "certificate is not trusted" in refused["error"]["message"]
    assert "HTTP 500" in trusted["error"]["message"]
    assert requests == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", "http://h:80/mcp"),
        ("https://h/", "https://h:443/mcp"),
        ("https://h:1/mcp", "https://h:1/mcp"),
        ("https://h/mcp/", "https://h:443/mcp"),
        ("https://h/galley", "https://h:443/galley/mcp"),
        ("http://[::1]:8420", "http://[::1]:8420/mcp"),
    ],
)
def test_galley_url_is_the_servers_or_its_endpoints(url: str, expected: str) -> None:
    assert str(Address.parse(url)) == expected


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h?a=b"])
def test_what_is_no_address_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match="GALLEY_URL"):
        Address.parse(url)


@pytest.mark.parametrize(
    ("url", "exposed"), [("http://10.0.0.1", True), ("http://localhost", False), ("https://10.0.0.1", False)]
)
def test_a_key_on_an_open_line_is_noticed(url: str, exposed: bool) -> None:
    assert Address.parse(url).exposes_key is exposed
