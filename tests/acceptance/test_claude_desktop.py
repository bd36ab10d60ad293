"""The Claude Desktop example: its configurations, and the smoke script that drives them."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path
from types import SimpleNamespace

import pytest
from galley_server.mcp.tools import tools_of
from galley_server.settings import NAMES

from tests.acceptance.server_process import environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "claude_desktop"
CONFIGURATIONS = sorted(EXAMPLE.glob("claude_desktop_config.*.json"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_a_configuration_starts_galley_mcp_with_settings_that_exist(path: Path) -> None:
    entry = json.loads(path.read_text())["mcpServers"]["galley"]
    assert entry["args"][-1] == "mcp"
    assert set(entry["env"]) <= NAMES | {"WSLENV"}


@pytest.mark.anyio
async def test_the_smoke_script_passes_over_a_configuration(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    command = {"command": sys.executable, "args": ["-P", "-m", "galley_server", "mcp"], "env": {"GALLEY_HOME": home}}
    (tmp_path / "config.json").write_text(json.dumps({"mcpServers": {"galley": command}}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE / "smoke.py"),
        "--config",
        str(tmp_path / "config.json"),
        env=environment(tmp_path),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(60):
        shown, _ = await process.communicate()
    # The shim left a server behind, as it should; it would end by itself in a minute.
    os.kill(int((tmp_path / "home" / "server.lock").read_text()), signal.SIGTERM)
    assert process.returncode == 0, shown.decode()
    assert [line.split()[0] for line in shown.decode().splitlines()] == ["ok", "ok"]


@pytest.mark.anyio
async def test_the_smoke_script_fails_where_nothing_answers(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE / "smoke.py"), "--", "false", stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    async with asyncio.timeout(60):
        shown, _ = await process.communicate()
    assert process.returncode == 1
    assert shown.decode().startswith("FAIL")


def test_the_guide_explains_exactly_the_tools_there_are() -> None:
    guide = (EXAMPLE / "README.md").read_text()
    section = guide.partition("## What each tool does")[2].partition("\n## ")[0]
    explained = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    runtime = SimpleNamespace()  # the tools are only listed, never called
    assert explained == {tool.name for tool in tools_of(runtime)}  # type: ignore[arg-type]
