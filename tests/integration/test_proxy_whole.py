"""The proxy as one program: a credential goes in over the API, a tool call goes out with it, nobody else sees it."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from galley_vault_proxy.preamble import greeting
from galley_vault_proxy.secret import Secret
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from tests.integration.proxy_kit import KEY, Proxy, proxy

pytestmark = pytest.mark.anyio

CANARY = "canary-0b7e41-of-the-whole"
UPSTREAM = Path(__file__).with_name("mcp_everything_program.py")
Era = Literal["legacy", "2026-07-28"]


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """An MCP server outside, which shows the headers it is called with."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(UPSTREAM), "http"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        await process.wait()


async def keep(running: Proxy, url: str, token: str) -> tuple[str, str]:
    """Put a token into a vault of the proxy; return the vault and the credential."""
    async with running.client() as client:
        vault = (await client.post("/v1/vaults", json={"display_name": "whole"})).json()["id"]
        auth = {"type": "static_bearer", "mcp_server_url": url, "token": token}
        made = await client.post(f"/v1/vaults/{vault}/credentials", json={"auth": auth})
    assert made.status_code == 200, made.text
    assert token not in made.text
    return vault, made.json()["id"]


@asynccontextmanager
async def agent(running: Proxy, token: str, era: Era = "2026-07-28") -> AsyncIterator[Client]:
    """An MCP client that holds a grant and nothing else."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=20) as http,
        Client(streamable_http_client(f"{running.url}/mcp/up", http_client=http), mode=era) as client,
    ):
        yield client


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def said(result: Any) -> str:
    return "".join(block.text for block in result.content if isinstance(block, TextContent))


@asynccontextmanager
async def whole(home: Path) -> AsyncIterator[tuple[Proxy, str]]:
    async with (
        asyncio.timeout(60),
        upstream() as url,
        proxy(home, environ={"GALLEY_PROXY_ALLOW_NETS": "127.0.0.0/8"}) as running,
    ):
        yield running, url


async def refused(running: Proxy, token: str) -> int:
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"{running.url}/mcp/up",
            headers={"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream"},
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        )
        return answer.status_code


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_a_tool_is_called_with_a_credential_that_its_caller_never_sees(tmp_path: Path, era: Era) -> None:
    async with whole(tmp_path) as (running, url):
        vault, credential = await keep(running, url, CANARY)
        grant = await running.grant(
            vault_ids=[vault], mcp_servers=[{"name": "up", "url": url, "tools": ["echo", "whoami"]}]
        )
        async with agent(running, grant["token"], era) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"echo", "whoami"}
            assert said(await client.call_tool("echo", {"text": "hi"})) == "hi"
            headers = json.loads(said(await client.call_tool("whoami", {})))
            # It was sent, and what came back does not hold it; nor did the grant go up.
            assert headers["authorization"]
            assert CANARY not in json.dumps(headers)
            assert grant["token"] not in json.dumps(headers)
        async with running.client() as admin:
            lines = (await admin.get("/v1/audit", params={"grant_id": grant["id"]})).json()["data"]
        used = [line for line in lines if line.get("tool") == "whoami" and line.get("credential_id") == credential]
        assert {line["decision"] for line in used} == {"allow"}
        assert CANARY not in json.dumps(lines)


async def test_without_a_vault_there_is_no_credential(tmp_path: Path) -> None:
    async with whole(tmp_path) as (running, url):
        await keep(running, url, CANARY)
        grant = await running.grant(mcp_servers=[{"name": "up", "url": url}])
        async with agent(running, grant["token"]) as client:
            assert "authorization" not in json.loads(said(await client.call_tool("whoami", {})))


async def test_a_revoked_session_is_cut_off_in_the_middle_of_a_call(tmp_path: Path) -> None:
    async with whole(tmp_path) as (running, url):
        grant = await running.grant("sesn_1", mcp_servers=[{"name": "up", "url": url}])
        loop = asyncio.get_running_loop()
        async with httpx2.AsyncClient(trust_env=False, timeout=20) as http, running.client() as admin:
            call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": _wait_params()}
            headers = {
                "authorization": f"Bearer {grant['token']}",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": "2026-07-28",
                "mcp-method": "tools/call",
                "mcp-name": "wait",
            }
            async with http.stream("POST", f"{running.url}/mcp/up", headers=headers, json=call) as answer:
                assert answer.status_code == 200
                start = loop.time()
                assert (await admin.delete("/v1/sessions/sesn_1")).status_code == 200
                text = b"".join([part async for part in _until_cut(answer)])
            assert b'"waited"' not in text
            assert loop.time() - start < 2
        assert await refused(running, grant["token"]) == 401


def _wait_params() -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {"name": "wait", "arguments": {"seconds": 30}, "_meta": {**meta, "progressToken": 1}}


async def _until_cut(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_bytes():
            yield part
    except httpx2.RemoteProtocolError:
        return


async def test_it_ends_in_time_with_a_call_on_its_way(tmp_path: Path) -> None:
    async with whole(tmp_path) as (running, url):
        grant = await running.grant(mcp_servers=[{"name": "up", "url": url}])
        begun = asyncio.Event()

        async def noted(progress: float, total: float | None, message: str | None) -> None:
            begun.set()

        async def call() -> None:
            with pytest.raises(BaseException):  # noqa: B017 - however the client tells it
                async with agent(running, grant["token"]) as client:
                    await client.call_tool("wait", {"seconds": 60}, progress_callback=noted)

        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(call())
            await begun.wait()
            assert await running.stop(signal.SIGTERM) == 0
            await asyncio.wait([calling], timeout=10)


async def test_a_rotated_credential_is_used_at_the_next_call(tmp_path: Path) -> None:
    async with whole(tmp_path) as (running, url), running.client() as admin:
        vault, credential = await keep(running, url, CANARY)
        grant = await running.grant(vault_ids=[vault], mcp_servers=[{"name": "up", "url": url}])
        async with agent(running, grant["token"]) as client:
            await client.call_tool("echo", {"text": "before"})
            await admin.post(
                f"/v1/vaults/{vault}/credentials/{credential}",
                json={"auth": {"type": "static_bearer", "token": "another-canary-9d21"}},
            )
            await client.call_tool("echo", {"text": "after"})
        lines = (await admin.get("/v1/audit", params={"grant_id": grant["id"]})).json()["data"]
        used = [line["credential_version"] for line in lines if line.get("tool") == "echo" and "bytes" in line]
        assert used == [1, 2]


async def test_the_credential_is_nowhere_at_rest_but_sealed(tmp_path: Path) -> None:
    async with whole(tmp_path) as (running, url):
        vault, _ = await keep(running, url, CANARY)
        grant = await running.grant(vault_ids=[vault], mcp_servers=[{"name": "up", "url": url}])
        async with agent(running, grant["token"]) as client:
            await client.call_tool("whoami", {})
        await running.stop()
    kept = everything_in(tmp_path)
    assert CANARY.encode() not in kept
    assert CANARY.encode().hex().encode() not in kept


class Echo:
    """A web server outside that says what it was asked, headers and all."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    self.asked.append(head)
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))
                    await writer.drain()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            for writer in writers:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()


@asynccontextmanager
async def outside(home: Path, *words: str) -> AsyncIterator[tuple[Proxy, Echo, int]]:
    echo = Echo()
    async with (
        asyncio.timeout(60),
        echo.running() as port,
        proxy(home, *words, environ={"GALLEY_PROXY_ALLOW_NETS": "127.0.0.0/8"}) as running,
    ):
        yield running, echo, port


async def variable(running: Proxy) -> str:
    """A vault with one environment variable, whose secret is the canary."""
    async with running.client() as client:
        vault = str((await client.post("/v1/vaults", json={"display_name": "env"})).json()["id"])
        auth = {
            "type": "environment_variable",
            "secret_name": "API_TOKEN",
            "secret_value": CANARY,
            "networking": {"type": "limited", "allowed_hosts": ["127.0.0.1"]},
        }
        made = await client.post(f"/v1/vaults/{vault}/credentials", json={"auth": auth})
    assert made.status_code == 200, made.text
    return vault


async def test_a_placeholder_becomes_the_secret_outside_and_nowhere_else(tmp_path: Path) -> None:
    async with outside(tmp_path) as (running, echo, port), running.client() as admin:
        grant = await running.grant(
            vault_ids=[await variable(running)], hosts=[{"host": "127.0.0.1", "ports": [port], "methods": ["GET"]}]
        )
        placeholder = (await admin.get("/v1/sessions/sesn_1/environment")).json()["variables"]["API_TOKEN"]
        door = (await admin.get("/v1/egress")).json()
        assert "BEGIN CERTIFICATE" in door["ca_pem"]
        way = httpx2.Proxy(door["url"], auth=("any", grant["token"]))
        async with httpx2.AsyncClient(proxy=way, trust_env=False, headers={"x-token": placeholder}) as sandbox:
            answer = await sandbox.get(f"http://127.0.0.1:{port}/")
            assert answer.status_code == 200
            assert CANARY.encode() in echo.asked[0]
            assert grant["token"].encode() not in echo.asked[0]
            assert CANARY not in answer.text
            assert (await sandbox.post(f"http://127.0.0.1:{port}/")).status_code == 403
            await admin.delete("/v1/sessions/sesn_1")
            assert (await sandbox.get(f"http://127.0.0.1:{port}/")).status_code == 407
        assert len(echo.asked) == 1
        lines = (await admin.get("/v1/audit", params={"grant_id": grant["id"]})).json()["data"]
        assert {line["decision"] for line in lines if line["action"].startswith("egress")} == {"allow", "deny"}
        assert CANARY not in json.dumps(lines)


async def test_a_stolen_grant_opens_neither_door_from_another_sandbox(tmp_path: Path) -> None:
    uds, egress_uds = tmp_path / "api.sock", tmp_path / "egress.sock"
    async with outside(tmp_path / "home", "--uds", str(uds), "--egress-uds", str(egress_uds)) as (running, echo, port):
        grant = await running.grant(
            tunnel="tun_a",
            hosts=[{"host": "127.0.0.1", "ports": [port]}],
            mcp_servers=[{"name": "up", "url": f"http://127.0.0.1:{port}/mcp"}],
        )
        bearer = f"Bearer {grant['token']}"
        ask = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        through_egress = f"{ask}proxy-authorization: {bearer}\r\n\r\n"
        through_mcp = (
            f"DELETE /mcp/up HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nauthorization: {bearer}\r\n\r\n"
        )
        for tunnel, status in (("tun_b", b" 407 "), (None, b" 407 "), ("tun_a", b" 200 ")):
            assert status in await said_through(egress_uds, tunnel, through_egress)
        assert len(echo.asked) == 1
        for stranger in ("tun_b", None):
            assert b" 401 " in await said_through(uds, stranger, through_mcp)
        assert b" 401 " not in await said_through(uds, "tun_a", through_mcp)


async def said_through(uds: Path, tunnel: str | None, request: str) -> bytes:
    """The status line of the answer to a request through a sandbox's tunnel."""
    reader, writer = await asyncio.open_unix_connection(str(uds))
    if tunnel is not None:
        writer.write(greeting(Secret(KEY), tunnel))
    writer.write(request.encode())
    async with asyncio.timeout(10):
        line = await reader.readline()
    writer.close()
    return line


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """One request in a tunnel, and its whole answer, which says what was asked."""
    writer.write(f"GET /in-the-tunnel HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    assert b"/in-the-tunnel" in await reader.readuntil(b"\r\n\r\n")


@asynccontextmanager
async def connected(
    door: str, port: int, token: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A CONNECT tunnel through the egress door to a host outside, with one request answered in it."""
    url = httpx2.URL(door)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        target = f"127.0.0.1:{port}"
        writer.write(
            f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nproxy-authorization: Bearer {token}\r\n\r\n".encode()
        )
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await asked(reader, writer, port)
        yield reader, writer
    finally:
        writer.close()


async def test_an_open_tunnel_ends_with_its_session_and_with_the_proxy(tmp_path: Path) -> None:
    async with outside(tmp_path) as (running, _, port), running.client() as admin:
        door = (await admin.get("/v1/egress")).json()["url"]
        grants = [await running.grant(f"sesn_{number}", network="unrestricted") for number in (1, 2)]
        loop = asyncio.get_running_loop()
        async with (
            connected(door, port, grants[0]["token"]) as (gone, _),
            connected(door, port, grants[1]["token"]) as (
                kept,
                writer,
            ),
        ):
            start = loop.time()
            await admin.delete("/v1/sessions/sesn_1")
            async with asyncio.timeout(5):
                assert await gone.read() == b""
            assert loop.time() - start < 1
            await asked(kept, writer, port)
            assert await running.stop() == 0
            assert await kept.read() == b""


@pytest.mark.bubblewrap
async def test_a_stdio_server_has_the_credential_and_its_caller_does_not(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    seen = [sys.prefix, sys.base_prefix, str(UPSTREAM.parents[2])]
    await asyncio.to_thread(
        config.write_text,
        f"[stdio.local]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps([str(UPSTREAM), 'stdio'])}\n"
        f"credential_env = 'API_TOKEN'\nread = {json.dumps(seen)}\nnetwork = false\n",
    )
    async with (
        asyncio.timeout(60),
        proxy(tmp_path / "home", environ={"GALLEY_PROXY_CONFIG": str(config)}) as running,
    ):
        vault, _ = await keep(running, "stdio:local", CANARY)
        grant = await running.grant(vault_ids=[vault], mcp_servers=[{"name": "up", "url": "stdio:local"}])
        async with agent(running, grant["token"]) as client:
            environment = json.loads(said(await client.call_tool("environment", {})))
        assert environment["API_TOKEN"]
        assert CANARY not in json.dumps(environment)
        assert not [name for name in environment if name.startswith("GALLEY_")]
