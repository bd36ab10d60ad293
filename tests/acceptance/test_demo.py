"""`galley demo` as a command: real tool calls over a real file, without key, Docker or network."""

import asyncio
import csv
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import call, say
from galley_server.demo.script import Script

from tests.acceptance.server_process import GALLEY, environment

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

# Brings loopback up in a network name space of its own: nothing else is there.
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "alone")


async def demo(home: Path, *words: str, before: tuple[str, ...] = (), **settings: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *before,
        *GALLEY,
        "demo",
        *words,
        env=environment(home, **settings),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(120):
        shown, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, shown.decode()


def ranked(shown: str) -> list[str]:
    """The products of the answer's table, in their order."""
    answer = shown.partition("\nThe answer\n")[2]
    return re.findall(r"^\| \d+ \| ([^|]+?) \|", answer, re.MULTILINE)


def top_five() -> list[str]:
    """The same question, answered here: a product's revenue is the sum of price times quantity, whatever its case."""
    revenue: defaultdict[str, float] = defaultdict(float)
    names: dict[str, str] = {}
    text = (files("galley_server.demo") / "sales_data.csv").read_text()
    for row in csv.DictReader(text.splitlines()):
        name = " ".join((row["product"] or "").split())
        try:
            amount = float(row["unit_price"]) * float(row["quantity"])
        except (TypeError, ValueError):
            continue
        if name and name.lower() != "total":
            names.setdefault(name.lower(), name)
            revenue[name.lower()] += amount
    return [names[key] for key in sorted(revenue, key=lambda key: -revenue[key])[:5]]


async def test_the_demo_answers_rightly_without_key_docker_or_network(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        before: tuple[
            str, ...
        ] = ()  # who may not make a network name space still plays the demo, with the network there
    else:
        before = ALONE
    status, shown = await demo(tmp_path, before=before, DOCKER_HOST="tcp://127.0.0.1:1")
    assert status == 0, shown
    assert [name.lower() for name in ranked(shown)] == [name.lower() for name in top_five()]


async def test_the_timeline_shows_the_calls_their_output_and_what_really_ran(tmp_path: Path) -> None:
    status, shown = await demo(tmp_path)
    assert status == 0, shown
    timeline, _, rest = shown.partition("\nThe answer\n")
    kinds = re.findall(r"^ +\d+\.\d\d s  (\S+)", timeline, re.MULTILINE)
    assert kinds[0] == "user.message"
    assert kinds[-1] == "session.status_idle"
    assert kinds.count("agent.tool_use") == kinds.count("agent.tool_result") >= 3
    assert "sandbox  bubblewrap" in rest
    assert "chain verified" in rest


async def test_it_takes_any_csv_with_such_columns(tmp_path: Path) -> None:
    mine = tmp_path / "shop.csv"
    mine.write_text("item,price_each,qty_sold\nsoap,2.50,10\ncomb,4.00,3\nbrush,9.00,4\n")
    status, shown = await demo(tmp_path / "home", "--csv", str(mine))
    assert status == 0, shown
    assert ranked(shown) == ["brush", "soap", "comb"]


async def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    status, shown = await demo(tmp_path / "home", TMPDIR=str(tmp_path / "tmp"))
    assert status == 0, shown
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "No such file"), (b"\xff\xfe\x00", "is not a text file"), (b"x" * 2_000_001, "bytes")],
)
async def test_a_file_it_cannot_take_is_one_line(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    status, shown = await demo(tmp_path / "home", "--csv", str(path))
    assert status == 2
    assert complaint in shown
    assert len(shown.splitlines()) == 1


async def test_live_without_a_model_says_what_to_set(tmp_path: Path) -> None:
    status, shown = await demo(tmp_path, "--live")
    assert (status, len(shown.splitlines())) == (2, 1)
    assert "ANTHROPIC_API_KEY" in shown


async def test_live_asks_the_configured_model(tmp_path: Path) -> None:
    script = Script(call("bash", command="echo hello"), say("Ask me something else."))
    async with serve_scripted(script) as url:
        status, shown = await demo(tmp_path, "--live", GALLEY_MODEL_BASE_URL=url, GALLEY_MODEL_API_KEY="live-key")
    assert status == 0, shown
    assert "Ask me something else." in shown.partition("\nThe answer\n")[2]
    assert "sales_data.csv" in str(script.requests[0].body)
