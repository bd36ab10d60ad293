"""`/mcp` over real HTTP: both eras, the gate, malformed bodies, sessions left behind, shutdowns."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from galley_server.mcp.http import HTTPEndpoint
from galley_server.mcp.lines import MAX_CLIENT_LINE
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tests.integration.mcp_server_program import API_KEY, http_server, tool_server
from tests.integration.test_mcp_shim import environ, until
from tests.integration.test_mcp_socket import ENVELOPE, INITIALIZE, call

pytestmark = pytest.mark.anyio

BOTH = "application/json, text/event-stream"
MODERN = {"MCP-Protocol-Version": "2026-07-28"}


class Face(httpx2.AsyncClient):
    """A client of a server that runs in this process."""

    endpoint: HTTPEndpoint
    port: int

    async def ask(self, message: Any, *, headers: dict[str, str] | None = None, **options: Any) -> httpx2.Response:
        body = message if isinstance(message, bytes) else json.dumps({"jsonrpc": "2.0", **message}).encode()
        return await self.post("/mcp", content=body, headers=headers, **options)

    async def session(self) -> dict[str, str]:
        """The headers of a new handshake-era session."""
        opened = await self.ask({"id": 1, "method": "initialize", "params": INITIALIZE})
        headers = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        await self.ask({"method": "notifications/initialized"}, headers=headers)
        return headers


def free_port() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def headers_of(key: str = API_KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Accept": BOTH, "Content-Type": "application/json"}


@asynccontextmanager
async def serving(home: Path, **options: Any) -> AsyncIterator[Face]:
    with free_port() as bound:
        port = bound.getsockname()[1]
        server, endpoint = http_server(tool_server(home), port, **options)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[bound]))
            await server.ready.wait()
            async with Face(base_url=f"http://127.0.0.1:{port}", headers=headers_of(), timeout=20) as face:
                face.endpoint, face.port = endpoint, port
                try:
                    yield face
                finally:
                    server.should_exit = True


def modern(message: dict[str, Any]) -> dict[str, str]:
    headers = MODERN | {"Mcp-Method": message["method"]}
    return headers | ({"Mcp-Name": message["params"]["name"]} if "name" in message["params"] else {})


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25"), ("2026-07-28",) * 2])
async def test_the_sdks_client_works_in_every_mode(tmp_path: Path, mode: str, version: str) -> None:
    async with serving(tmp_path) as face:
        transport = streamable_http_client(f"{face.base_url}/mcp", http_client=face)
        async with Client(transport, mode=mode) as client:
            result = await client.call_tool("echo", {"text": "hi"})
            assert client.protocol_version == version
    assert result.structured_content == {"result": "hi"}


async def test_the_sdks_client_is_told_that_its_key_is_wrong(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        face.headers["Authorization"] = "Bearer wrong"
        with pytest.raises((MCPError, ExceptionGroup)):
            async with Client(
                streamable_http_client(f"{face.base_url}/mcp", http_client=face), mode="2026-07-28"
            ) as client:
                await client.call_tool("echo", {"text": "hi"})


@pytest.mark.parametrize("path", ["/mcp", "/mcp/"])
async def test_both_spellings_of_the_path_are_served_where_they_are(tmp_path: Path, path: str) -> None:
    message = call(1, "echo", text="hi")
    async with serving(tmp_path) as face:
        body = json.dumps({"jsonrpc": "2.0", **message})
        answer = await face.post(path, content=body, headers=modern(message))
    assert answer.status_code == 200
    assert answer.json()["result"]["structuredContent"] == {"result": "hi"}


async def test_without_a_key_the_body_is_not_even_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        del face.headers["Authorization"]
        answer = await face.ask(b"nonsense")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="galley"'
    assert "GALLEY_API_KEY" in answer.json()["error"]["message"]


async def test_x_api_key_opens_as_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        del face.headers["Authorization"]
        answer = await face.ask({"id": 1, "method": "initialize", "params": INITIALIZE}, headers={"x-api-key": API_KEY})
    assert answer.status_code == 200


@pytest.mark.parametrize(("header", "status"), [("Host", 421), ("Origin", 403)])
async def test_a_rebound_name_is_refused(tmp_path: Path, header: str, status: int) -> None:
    async with serving(tmp_path) as face:
        answer = await face.ask({"id": 1, "method": "ping"}, headers={header: "http://evil.example"})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{nonsense", -32700),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 5000 + b"]" * 5000 + b"}", -32700),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
        (b'{"id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        (b"", -32700),
    ],
)
@pytest.mark.parametrize("headers", [{}, MODERN])
async def test_a_malformed_body_gets_one_sentence(
    tmp_path: Path, body: bytes, code: int, headers: dict[str, str]
) -> None:
    async with serving(tmp_path) as face:
        answer = await face.ask(body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert "pydantic" not in answer.text
    assert len(answer.text) < 300


async def test_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_CLIENT_LINE // 65536 + 1):
            yield b"x" * 65536

    async with serving(tmp_path) as face:
        declared = await face.ask(b"x" * (MAX_CLIENT_LINE + 1))
        streamed = await face.post("/mcp", content=chunks())
    assert (declared.status_code, streamed.status_code) == (413, 413)


async def test_a_body_of_another_type_is_415(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        answer = await face.ask({"id": 1, "method": "ping"}, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


@pytest.mark.parametrize("version", [{}, {"MCP-Protocol-Version": "2024-11-05"}, MODERN])
async def test_a_get_without_a_session_is_405_as_clients_need_it(tmp_path: Path, version: dict[str, str]) -> None:
    async with serving(tmp_path) as face:
        answer = await face.get("/mcp", headers=version | {"Accept": "*/*"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_an_unknown_session_is_404_so_that_the_client_initialises_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        answer = await face.ask({"id": 1, "method": "ping"}, headers={"Mcp-Session-Id": "gone"})
        stream = await face.get("/mcp", headers={"Mcp-Session-Id": "gone"})
    assert (answer.status_code, stream.status_code) == (404, 404)


async def test_a_request_outside_a_session_is_told_what_is_missing(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        answer = await face.ask({"id": 1, "method": "tools/list"})
        assert face.endpoint.sessions == 0
    assert (answer.status_code, answer.json()["id"]) == (400, 1)
    assert "initialize" in answer.json()["error"]["message"]


async def test_a_header_that_contradicts_the_body_is_refused(tmp_path: Path) -> None:
    message = call(1, "echo", text="hi")
    async with serving(tmp_path) as face:
        answer = await face.ask(message, headers=modern(message) | {"Mcp-Name": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)


async def test_blanks_around_a_header_value_are_no_part_of_it(tmp_path: Path) -> None:
    message = call(1, "echo", text="hi")
    body = json.dumps({"jsonrpc": "2.0", **message})
    headers = {"Host": "localhost", **headers_of(), **modern(message), "Mcp-Name": "  echo \t "}
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    async with serving(tmp_path) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write("\r\n".join(["POST /mcp HTTP/1.1", *lines, "", body]).encode())
        status = await reader.readline()
        writer.close()
    assert status == b"HTTP/1.1 200 OK\r\n"


async def test_a_modern_request_without_its_version_header_is_told_which_one_is_missing(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        answer = await face.ask(call(1, "echo", text="hi"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)
    assert "MCP-Protocol-Version" in answer.json()["error"]["message"]


async def test_a_session_lives_until_it_is_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        headers = await face.session()
        called = await face.ask(call(2, "echo", modern=False, text="hi"), headers=headers)
        assert face.endpoint.sessions == 1
        await face.delete("/mcp", headers=headers)
        assert face.endpoint.sessions == 0
        after = await face.ask(call(3, "echo", modern=False, text="hi"), headers=headers)
    assert events(called.text)[-1]["result"]["structuredContent"] == {"result": "hi"}
    assert after.status_code == 404


async def test_the_same_id_twice_in_a_session_is_refused_while_the_first_is_unanswered(tmp_path: Path) -> None:
    async with serving(tmp_path) as face, asyncio.TaskGroup() as tasks:
        headers = await face.session()
        hanging = tasks.create_task(face.ask(call(7, "count", modern=False), headers=headers))
        await until((tmp_path / "effects").exists)
        second = await face.ask(call(7, "echo", modern=False, text="hi"), headers=headers)
        await face.ask({"method": "notifications/cancelled", "params": {"requestId": 7}}, headers=headers)
        await hanging
    assert second.status_code == 400


async def test_the_session_idle_for_longest_makes_room_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galley_server.mcp.sessions.FRESH_S", -1.0)
    async with serving(tmp_path, max_sessions=3) as face:
        sessions = [await face.session() for _ in range(4)]
        states = [(await face.ask({"id": 1, "method": "ping"}, headers=headers)).status_code for headers in sessions]
        assert face.endpoint.sessions == 3
    assert states == [404, 200, 200, 200]


async def test_sessions_in_use_are_not_sacrificed_to_a_newcomer(tmp_path: Path) -> None:
    async with serving(tmp_path, max_sessions=2) as face:
        kept = [await face.session() for _ in range(2)]
        refused = await face.ask({"id": 1, "method": "initialize", "params": INITIALIZE})
        states = [(await face.ask({"id": 1, "method": "ping"}, headers=headers)).status_code for headers in kept]
    assert (refused.status_code, refused.headers["retry-after"], states) == (503, "30", [200, 200])


async def test_a_session_nobody_uses_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, session_idle_s=0.05) as face:
        headers = await face.session()
        while (await face.ask({"id": 1, "method": "ping"}, headers=headers)).status_code != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_legacy_list_changes_are_announced_and_delivered(tmp_path: Path) -> None:
    async with serving(tmp_path) as face:
        headers = await face.session()
        async with face.stream("GET", "/mcp", headers=headers) as stream:
            message = call(1, "announce")
            await face.ask(message, headers=modern(message))
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    break
    assert json.loads(line.removeprefix("data: "))["method"] == "notifications/tools/list_changed"


async def test_hanging_up_cancels_a_modern_call(tmp_path: Path) -> None:
    message = call(1, "count")
    async with serving(tmp_path) as face:
        with pytest.raises(httpx2.ReadTimeout):
            await face.ask(message, headers=modern(message), timeout=0.3)
        await until((tmp_path / "cancelled").exists)


async def test_closing_answers_calls_and_ends_streams_within_a_second(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with serving(tmp_path) as face, asyncio.TaskGroup() as tasks:
        headers = await face.session()
        legacy = tasks.create_task(face.ask(call(7, "count", modern=False), headers=headers))
        await until((tmp_path / "effects").exists)
        message = call(8, "count")
        waiting = tasks.create_task(face.ask(message, headers=modern(message)))
        await until(lambda: (tmp_path / "effects").read_text() == "x\nx\n")
        listen = {"id": "l", "method": "subscriptions/listen", "params": {"notifications": {}, "_meta": ENVELOPE}}
        async with (
            face.stream("GET", "/mcp", headers=headers) as get,
            face.stream("POST", "/mcp", json={"jsonrpc": "2.0", **listen}, headers=modern(listen)) as listening,
        ):
            lines = listening.aiter_lines()
            await anext(lines)  # the acknowledgement: the stream is open
            before = loop.time()
            await face.endpoint.close()
            assert loop.time() - before < 1
            assert await get.aread() == b""
            rest = [line async for line in lines]
        late = await face.ask({"id": 9, "method": "ping"}, headers=headers)
    assert events("\n".join(rest))[-1]["id"] == "l"
    assert "shutting down" in events((await legacy).text)[-1]["error"]["message"]
    assert (waiting.result().status_code, waiting.result().json()["id"]) == (503, 8)
    assert late.status_code == 503


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_sigterm_ends_a_server_with_an_open_stream_within_a_second(tmp_path: Path, era: str) -> None:
    with free_port() as bound:
        port = bound.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("mcp_server_program.py")),
        str(port),
        env=environ(tmp_path),
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(30), Face(base_url=f"http://127.0.0.1:{port}", headers=headers_of()) as face:
        await until(lambda: answers(port))
        listen = {"id": "l", "method": "subscriptions/listen", "params": {"notifications": {}, "_meta": ENVELOPE}}
        request: dict[str, Any] = {"method": "POST", "json": {"jsonrpc": "2.0", **listen}, "headers": modern(listen)}
        if era == "legacy":
            request = {"method": "GET", "headers": await face.session()}
        async with face.stream(url="/mcp", **request) as stream:
            os.kill(process.pid, signal.SIGTERM)
            before = asyncio.get_running_loop().time()
            _, errors = await process.communicate()
            assert asyncio.get_running_loop().time() - before < 1
            await stream.aread()
    assert process.returncode in (0, -signal.SIGTERM)
    assert errors == b""


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
