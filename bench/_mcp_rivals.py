"""The proxies of others for the bench of rivals: each in a virtual environment of its own, with pinned versions.

Each runs as its documentation says for production, in one process, and puts the same credential in as the door does.
"""

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from bench._mcp_door import TOKEN

FASTMCP: Final = "fastmcp==4.1.6"
# The newest that runs on every Python that Galley runs on.
CONTEXTFORGE: Final = "mcp-contextforge-gateway==1.0.7.post20260921"
PLACE: Final = Path(__file__).resolve().parent / ".rivals"
_INSTALL_S: Final = 900
_START_S: Final = 180
_ADMIN: Final = "admin@example.com"

_FASTMCP_PROXY: Final = """
import asyncio, socket, sys
import uvicorn
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.server import create_proxy
transport = StreamableHttpTransport(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
app = create_proxy(transport, name="rival").http_app()
listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
asyncio.run(uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).serve(sockets=[listener]))
"""


class NotInstalled(Exception):
    """A rival cannot be had here. The message says why."""


@dataclass(frozen=True)
class Rival:
    """One that runs. `tool` is what it calls the echo."""

    url: str
    token: str
    tool: str


def install(requirement: str) -> Path:
    """The directory of its programs. Raises NotInstalled."""
    place = PLACE / f"{requirement.replace('==', '-')}-py{sys.version_info[0]}.{sys.version_info[1]}"
    done = place / ".installed"
    if not done.exists():
        print(f"installing {requirement} into {place.relative_to(PLACE.parent.parent)}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(place)],
            [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement],
        ):
            try:
                run = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
            except subprocess.TimeoutExpired:
                raise NotInstalled(f"{requirement} was not installed within {_INSTALL_S} s") from None
            if run.returncode:
                raise NotInstalled(f"{requirement} cannot be installed:\n{run.stderr.strip()[-2000:]}")
        done.touch()
    return place / "bin"


@asynccontextmanager
async def fastmcp(programs: Path, upstream: str) -> AsyncIterator[Rival]:
    process = await asyncio.create_subprocess_exec(
        *(str(programs / "python"), "-c", _FASTMCP_PROXY, upstream, TOKEN),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise NotInstalled(f"{FASTMCP} does not start")
        yield Rival(url, "none", "echo")
    finally:
        await _end(process)


@asynccontextmanager
async def contextforge(programs: Path, upstream: str, *, stateful: bool) -> AsyncIterator[Rival]:
    """`stateful`: not as it comes, but as it is quickest: with sessions that it keeps in the one process."""
    with tempfile.TemporaryDirectory() as home, socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
        found.close()
        environment = _contextforge_settings(Path(home), stateful=stateful)
        with (Path(home) / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(str(programs / "mcpgateway"), "--host", "127.0.0.1", "--port", str(port), "--no-access-log"),
                cwd=home,
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            token = await asyncio.to_thread(_contextforge_token, programs, environment)
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60
            ) as http:
                await _until_healthy(http, process, Path(home) / "log")
                server, tool = await _register(http, upstream)
            yield Rival(f"http://127.0.0.1:{port}/servers/{server}/mcp/", token, tool)
        finally:
            await _end(process)


def _contextforge_settings(home: Path, *, stateful: bool) -> Mapping[str, str]:
    password = f"Aa1!{secrets.token_hex(16)}"
    return {
        **os.environ,
        "ENVIRONMENT": "production",
        "LOG_LEVEL": "ERROR",
        "CACHE_TYPE": "memory",
        "DATABASE_URL": f"sqlite:///{home}/gateway.db",
        "JWT_SECRET_KEY": f"Aa1!{secrets.token_hex(32)}",
        "AUTH_ENCRYPTION_SECRET": f"Aa1!{secrets.token_hex(32)}",
        "BASIC_AUTH_PASSWORD": password,
        "PLATFORM_ADMIN_EMAIL": _ADMIN,
        "PLATFORM_ADMIN_PASSWORD": password,
        "MCPGATEWAY_UI_ENABLED": "false",
        "MCPGATEWAY_ADMIN_API_ENABLED": "false",
        "PLUGINS_ENABLED": "false",
        "SSRF_ALLOW_LOCALHOST": "true",
        "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
        # More calls a minute than anybody would allow.
        "TOOL_RATE_LIMIT": "100000000",
        "RATE_LIMIT_MEDIUM_RPM": "100000000",
        "USE_STATEFUL_SESSIONS": "true" if stateful else "false",
    }


def _contextforge_token(programs: Path, environment: Mapping[str, str]) -> str:
    command = [str(programs / "python"), "-m", "mcpgateway.utils.create_jwt_token", "--admin"]
    command += ["--username", _ADMIN, "--exp", "120", "--secret", environment["JWT_SECRET_KEY"]]
    run = subprocess.run(command, capture_output=True, text=True, env=dict(environment), timeout=_START_S)
    if run.returncode:
        raise NotInstalled(f"{CONTEXTFORGE} makes no token:\n{run.stderr.strip()[-2000:]}")
    return run.stdout.strip().splitlines()[-1]


async def _until_healthy(http: httpx2.AsyncClient, process: asyncio.subprocess.Process, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.returncode is None:
        try:
            if (await http.get("/health")).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.5)
    said = await asyncio.to_thread(log.read_text, errors="replace")
    raise NotInstalled(f"{CONTEXTFORGE} does not start:\n{said[-2000:]}")


async def _register(http: httpx2.AsyncClient, upstream: str) -> tuple[str, str]:
    gateway = {"name": "echo", "url": upstream, "transport": "STREAMABLEHTTP", "auth_type": "bearer"}
    (await http.post("/gateways", json={**gateway, "auth_token": TOKEN})).raise_for_status()
    tool = (await http.get("/tools")).raise_for_status().json()[0]
    server = {"name": "bench", "description": "bench", "associated_tools": [tool["id"]]}
    made = (await http.post("/servers", json={"server": server})).raise_for_status().json()
    return made["id"], tool["name"]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
