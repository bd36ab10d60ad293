"""A container without any network reaches what its grant names, by two sockets in a folder. Any engine can."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import docker
import pytest
from galley_sandbox.docker.engine import Engine
from galley_sandbox.docker.image import DEFAULT_IMAGE, ensure_image

from tests.integration.runner_kit import FOLDER, broker, forwarding, keeping

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

# A host outside that a NO_PROXY of 127.0.0.1 does not cover.
OUTSIDE = "127.0.0.2"
AGENT = """
import os, socket, urllib.error, urllib.request

def status(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return error.code

print(status(os.environ["OUTSIDE"] + "/allowed"))
print(status(os.environ["OUTSIDE"] + "/other"))
print(status(os.environ["GALLEY_MCP_URL"].removesuffix("/mcp") + "/v1/grants"))
print(os.listdir("/sys/class/net"))
"""


@asynccontextmanager
async def outside() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, OUTSIDE, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def in_a_container(folder: Path, outside_url: str) -> str:
    """What the agent prints: the guide's way of running one."""
    inside = '. /run/sandbox/environment && exec python3 -c "$AGENT"'
    ways = "8430=/run/tunnel/mcp.sock", "8431=/run/tunnel/egress.sock"

    def run() -> str:
        client = docker.from_env(timeout=60)
        try:
            said = client.containers.run(
                DEFAULT_IMAGE,
                ["python3", "/opt/forward.py", *ways, "--", "sh", "-c", inside],
                environment={"OUTSIDE": outside_url, "AGENT": AGENT},
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                user=str(os.getuid()),
                volumes={
                    str(folder / "sandbox"): {"bind": "/run/sandbox", "mode": "ro"},
                    str(folder / "tunnel"): {"bind": "/run/tunnel", "mode": "ro"},
                    str(FOLDER / "forward.py"): {"bind": "/opt/forward.py", "mode": "ro"},
                },
                remove=True,
                stderr=True,
            )
            return bytes(said).decode()
        finally:
            client.close()

    return await asyncio.to_thread(run)


async def test_a_container_without_a_network_reaches_what_its_grant_names(tmp_path: Path) -> None:
    engine = Engine()
    try:
        await ensure_image(engine)
    finally:
        await engine.close()
    (tmp_path / "tunnel").mkdir()
    ends = [tmp_path / "tunnel" / f"{name}.sock" for name in ("mcp", "egress")]
    async with broker(tmp_path) as at, outside() as port:
        request = at.request(tunnel="tun_a", hosts=[{"host": OUTSIDE, "ports": [port], "paths": ["/allowed"]}])
        shown = ("--mcp-url=http://127.0.0.1:8430/mcp", "--egress-url=http://127.0.0.1:8431", "--seen-as=/run/sandbox")
        ways = [f"{end}={socket}" for end, socket in zip(ends, at.sockets, strict=True)]
        async with keeping(at, request, "--greeting", str(at.greeting), *shown) as keeper:
            await keeper.says("a grant for")
            async with forwarding("--greeting", at.greeting, *ways, waits_for=ends):
                said = await in_a_container(tmp_path, f"http://{OUTSIDE}:{port}")
    assert said.splitlines() == ["hello", "403", "404", "['lo']"]
