"""Where stdio servers cannot be run, the doctor says so and why, and a server that cannot start leaves its reason."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from tests.integration.proxy_kit import clean_environment, proxy

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

_HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def config(folder: Path, command: str, *args: str) -> Path:
    path = folder / "proxy.toml"
    path.write_text(f"[stdio.local]\ncommand = {json.dumps(command)}\nargs = {json.dumps(args)}\n")
    return path


async def doctor(folder: Path, path: Path, *, search: str | None = None) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "galley_vault_proxy", "doctor"),
        env={
            **clean_environment(),
            "PATH": search or os.environ["PATH"],
            "GALLEY_PROXY_HOME": str(folder / "home"),
            "GALLEY_PROXY_CONFIG": str(path),
        },
        stdin=DEVNULL,
        stdout=PIPE,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    (line,) = [line for line in said.decode().splitlines() if "stdio servers" in line]
    return process.returncode or 0, line


async def test_the_doctor_makes_a_sandbox_and_runs_no_server(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    path = await asyncio.to_thread(config, tmp_path, "/bin/sh", "-c", "exit 7")
    assert await doctor(tmp_path, path) == (0, "ok      stdio servers: each gets a sandbox of its own: local")


async def test_the_doctor_says_why_there_can_be_no_sandbox(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    path = await asyncio.to_thread(config, tmp_path, "/bin/true")
    # As in a container of most engines: the command is there, and the kernel says no.
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    status, line = await doctor(tmp_path, path, search=f"{tmp_path}:{os.environ['PATH']}")
    assert status == 1
    assert line.endswith("no sandbox for local: bwrap: No permissions to create new namespace")


async def last_words(folder: Path, script: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What the proxy's log says of a server that runs this and ends."""
    path = await asyncio.to_thread(config, folder, "/bin/sh", "-c", script)
    async with proxy(folder / "home", environ={"GALLEY_PROXY_CONFIG": str(path)}) as running:
        grant = await running.grant(mcp_servers=[{"name": "local", "url": "stdio:local"}])
        async with running.client() as client:
            await client.post(
                "/mcp/local",
                headers={"authorization": f"Bearer {grant['token']}", "accept": "application/json, text/event-stream"},
                json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": _HELLO},
            )
        assert await running.stop() == 0
    return capfd.readouterr().err


async def test_a_server_that_says_nothing_leaves_its_last_words_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logged = await last_words(tmp_path, "echo 'no such licence' >&2; exit 1", capfd)
    assert "stdio server local said no word of MCP; the last that it wrote: no such licence" in logged


async def test_a_server_can_leave_no_core_file_and_take_no_end_of_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logged = await last_words(tmp_path, 'echo "core $(ulimit -c) files $(ulimit -n)" >&2; exit 1', capfd)
    found = re.search(r"core (\w+) files (\w+)", logged)
    assert found is not None, logged
    assert found[1] == "0"
    assert int(found[2]) <= 4096
