"""What the README tells a stranger to do works as it stands there."""

import asyncio
import json
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import pytest
from galley_server.__main__ import COMMANDS
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import call, say
from galley_server.demo.script import Script

from tests.acceptance.server_process import environment, served

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.anyio
@pytest.mark.bubblewrap
async def test_the_example_with_the_official_sdk_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = blocks("python")
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


def test_the_commands_exist() -> None:
    shell = "\n".join(blocks("sh"))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", shell):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    used = set(re.findall(r"bin/galley (\w+)", shell))
    assert used
    assert used <= COMMANDS.keys()


def test_the_mcp_configuration_is_strict_json_for_galley_mcp() -> None:
    (text,) = blocks("json")
    entry = json.loads(text)["mcpServers"]["galley"]
    assert entry["args"] == ["mcp"]
    assert entry["command"].endswith("/.venv/bin/galley")


def test_every_link_into_the_repository_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
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
