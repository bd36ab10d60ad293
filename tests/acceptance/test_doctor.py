"""`galley doctor` as a command: what it finds, what it advises, what it never prints."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import say
from galley_server.demo.script import Script

from tests.acceptance.server_process import GALLEY, environment, served

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

KEY = "sk-planted-key-0123456789"


@pytest.fixture
async def endpoint() -> AsyncIterator[str]:
    async with serve_scripted(Script(say("ready"), say("ready")), api_key=KEY) as url:
        yield url


async def examine(home: Path, *words: str, **settings: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *GALLEY,
        "doctor",
        *words,
        env=environment(home, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "--json" in words else subprocess.STDOUT,
    )
    async with asyncio.timeout(90):
        shown, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, shown.decode()


async def test_where_everything_works_it_ends_with_0_and_has_made_nothing(tmp_path: Path, endpoint: str) -> None:
    home = tmp_path / "home"
    status, shown = await examine(
        home, GALLEY_MODEL_BASE_URL=endpoint, GALLEY_MODEL_API_KEY=KEY, GALLEY_MODEL="scripted-1"
    )
    assert status == 0, shown
    assert "FAIL" not in shown
    assert not home.exists()


async def test_a_refused_key_is_a_failure_with_its_fix_and_is_not_printed(tmp_path: Path, endpoint: str) -> None:
    wrong = "sk-another-planted-key-987"
    settings = {"GALLEY_MODEL_BASE_URL": endpoint, "GALLEY_MODEL_API_KEY": wrong, "GALLEY_MODEL": "scripted-1"}
    status, shown = await examine(tmp_path, **settings)
    assert status == 1
    assert "FAIL  model " in shown
    assert "GALLEY_MODEL_API_KEY" in shown.partition("FAIL  model ")[2]
    assert wrong not in shown


async def test_an_unreachable_endpoint_is_a_failure(tmp_path: Path) -> None:
    settings = {"GALLEY_MODEL_BASE_URL": "http://127.0.0.1:1", "GALLEY_MODEL_API_KEY": KEY}
    status, shown = await examine(tmp_path, "--json", **settings)
    findings = {finding["subject"]: finding for finding in json.loads(shown)}
    assert status == 1
    assert findings["model"]["verdict"] == "fail"
    assert findings["sandbox bubblewrap"]["verdict"] == "ok"


async def test_a_running_server_and_its_store_are_found_sound(tmp_path: Path, endpoint: str) -> None:
    settings = {"GALLEY_MODEL_BASE_URL": endpoint, "GALLEY_MODEL_API_KEY": KEY, "GALLEY_MODEL": "scripted-1"}
    async with served(tmp_path, **settings):
        status, shown = await examine(tmp_path, **settings)
    assert status == 0, shown
    assert "a server of this home is running" in shown
    assert "every chain verified" in shown


async def test_a_damaged_store_is_a_failure_with_its_fix(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await server.stop()
    connection = sqlite3.connect(tmp_path / "galley.db", isolation_level=None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    whole = bytearray((tmp_path / "galley.db").read_bytes())
    whole[8192:12288] = b"\xff" * 4096
    (tmp_path / "galley.db").write_bytes(whole)
    status, shown = await examine(tmp_path)
    assert status == 1
    assert "FAIL  store " in shown
    assert "galley backup" in shown


async def test_a_key_that_others_can_read_is_a_failure_with_the_command(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await server.stop()
    (tmp_path / "api_key").chmod(0o644)
    _, shown = await examine(tmp_path)
    assert f"chmod 600 {tmp_path / 'api_key'}" in shown


async def test_without_any_sandbox_it_says_how_to_get_one(tmp_path: Path) -> None:
    # A PATH on which there is no bwrap.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    _, shown = await examine(tmp_path / "home", PATH=str(tmp_path / "bin"))
    failed = shown.partition("FAIL  sandbox bubblewrap")[2]
    assert "apt-get install bubblewrap" in failed or "apt install bubblewrap" in failed


async def test_the_vault_proxy_is_tried_where_none_runs_and_asked_where_one_does(tmp_path: Path, endpoint: str) -> None:
    settings = {
        "GALLEY_MODEL_BASE_URL": endpoint,
        "GALLEY_MODEL_API_KEY": KEY,
        "GALLEY_MODEL": "scripted-1",
        "GALLEY_BROKER": "auto",
    }
    home = tmp_path / "home"
    assert (await proxy_finding(home, **settings))["detail"] == "one was started, and was ready"
    assert not home.exists()
    async with served(home, **settings):
        assert (await proxy_finding(home, **settings))["detail"] == "it is ready"


async def test_a_vault_proxy_that_cannot_work_is_a_failure_with_its_fix(tmp_path: Path) -> None:
    missing = {"GALLEY_PROXY_CONFIG": str(tmp_path / "missing.toml"), "GALLEY_PROXY_KEY": "planted-key-0123456789"}
    found = await proxy_finding(tmp_path / "home", GALLEY_BROKER="auto", **missing)
    assert found["verdict"] == "fail"
    assert "missing.toml" in found["detail"]
    assert found["fix"]
    assert "planted-key" not in str(found)
    nobody = await proxy_finding(tmp_path / "home", GALLEY_BROKER=str(tmp_path / "nobody"), **missing)
    assert nobody["verdict"] == "fail"
    assert nobody["fix"]


async def proxy_finding(home: Path, **settings: str) -> dict[str, str]:
    _, shown = await examine(home, "--json", **settings)
    (found,) = [one for one in json.loads(shown) if one["subject"] == "vault proxy"]
    return found  # type: ignore[no-any-return]
