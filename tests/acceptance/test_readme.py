"""What the README tells a stranger to do works as it stands there."""

import asyncio
import json
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import httpx2
import pytest
from galley_server.__main__ import COMMANDS
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import call, say
from galley_server.demo.script import Script
from galley_vault_proxy import narrow
from galley_vault_proxy.__main__ import COMMANDS as PROXY_COMMANDS

from tests.acceptance.server_process import environment, served
from tests.integration.proxy_kit import clean_environment, proxy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# Set to nothing is not set: it makes a key, and keeps it where the example reads it.
MADE_KEY = {"GALLEY_PROXY_KEY": ""}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.anyio
@pytest.mark.bubblewrap
async def test_the_example_with_the_official_sdk_runs_as_it_stands(tmp_path: Path) -> None:
    example, _ = blocks("python")
    home = tmp_path / ".local" / "share" / "galley"
    model = Script(call("bash", command="echo $((2 * 84))"), say("There are 168 primes below 1000."))
    async with (
        serve_scripted(model) as url,
        served(home, GALLEY_MODEL_BASE_URL=url, GALLEY_MODEL_API_KEY="k") as server,
    ):
        # The one change: the port that this test's server got.
        assert "http://127.0.0.1:8420" in example
        program = example.replace("http://127.0.0.1:8420", server.url)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            env=environment(home, HOME=str(tmp_path)),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        async with asyncio.timeout(60):
            shown, _ = await process.communicate()
    lines = shown.decode().splitlines()
    assert "There are 168 primes below 1000." in lines
    assert lines[-1] == "session.status_idle"
    assert lines.index("agent.tool_use") < lines.index("agent.tool_result") < lines.index("agent.message")


@pytest.mark.anyio
async def test_the_brokers_example_runs_as_it_stands(tmp_path: Path) -> None:
    _, example = blocks("python")
    async with proxy(tmp_path / ".local" / "share" / "galley" / "vault_proxy", environ=MADE_KEY) as broker:
        # The one change: the port that this test's broker got.
        assert "http://127.0.0.1:8430" in example
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", example.replace("http://127.0.0.1:8430", broker.url)),
            env={**clean_environment(), "HOME": str(tmp_path)},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        async with asyncio.timeout(60):
            shown = (await process.communicate())[0].decode().split()
        assert process.returncode == 0, shown
        narrowed = narrow(shown[0], tools={"docs": ["search"]}, expires_in=60)
        async with httpx2.AsyncClient(base_url=broker.url, trust_env=False) as client:
            statuses = [
                (await client.delete("/mcp/docs", headers={"authorization": f"Bearer {token}"})).status_code
                for token in (shown[0], narrowed, shown[0] + "x")
            ]
    assert statuses[2] == 401
    assert 401 not in statuses[:2]


def test_the_commands_exist() -> None:
    shell = "\n".join(blocks("sh"))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", shell):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    used = set(re.findall(r"bin/galley (\w+)", shell))
    assert used
    assert used <= COMMANDS.keys()
    assert set(re.findall(r"bin/galley-vault-proxy (\w+)", shell)) <= PROXY_COMMANDS.keys()


def test_the_mcp_configuration_is_strict_json_for_galley_mcp() -> None:
    (text,) = blocks("json")
    entry = json.loads(text)["mcpServers"]["galley"]
    assert entry["args"] == ["mcp"]
    assert entry["command"].endswith("/.venv/bin/galley")


def test_every_link_into_the_repository_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    pages += (ROOT / "deploy").rglob("*.md")
    missing = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert missing == []


def test_every_bench_that_is_named_exists_and_every_bench_is_named() -> None:
    named = set(re.findall(r"`bench/(\w+)\.py`", README))
    there = {path.stem for path in (ROOT / "bench").glob("*.py") if not path.stem.startswith("_")}
    assert named == there
