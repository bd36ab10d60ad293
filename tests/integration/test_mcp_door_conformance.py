"""The official conformance suite finds the same with the door in the way as without it.

Where the door has to bridge the eras, it finds what it finds of a server of the client's own era, but for the few
differences that are in the nature of the thing, which are listed here.
"""

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from tests.integration.mcp_door_kit import everything
from tests.integration.mcp_node_kit import Programs, installed

pytestmark = [pytest.mark.anyio, pytest.mark.node]

Findings: TypeAlias = Mapping[str, Counter[tuple[str, str]]]
"""By scenario: which check came out how, and how often."""

LEGACY: Final = "2025-11-25"
MODERN: Final = "2026-07-28"
LEAST_PASSED: Final = {LEGACY: 80, MODERN: 165}

# An older server asks while a call runs, one question after another; its questions have no names for the door to keep,
# and none can be answered before it is asked.
MODERN_TO_LEGACY: Final = frozenset(
    {
        "input-required-result-basic-elicitation",
        "input-required-result-ignore-extra-params",
        "input-required-result-multiple-input-requests",
    }
)
# The newer era has no streams to take up again.
LEGACY_TO_MODERN: Final = frozenset({"server-sse-polling", "server-sse-multiple-streams"})


@pytest.fixture(scope="session")
def programs() -> Programs:
    return installed()


@asynccontextmanager
async def door_to(url: str) -> AsyncIterator[str]:
    """A door in a process of its own that gives everybody the grant for one server; its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.mcp_door_program", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def findings(programs: Programs, url: str, revision: str, place: Path) -> Findings:
    """Run the suite of one revision's requirements against a server."""
    words = ("server", "--url", url, "--requirements", revision, "--output-dir", str(place))
    process = await asyncio.create_subprocess_exec(
        *programs.command("conformance", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=programs.environment(place),
        cwd=place.parent,
    )
    try:
        async with asyncio.timeout(240):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = _findings_in(place)
    assert found, said.decode()
    return found


def _findings_in(place: Path) -> Findings:
    return {_scenario(path): _outcomes(path) for path in place.glob("*/checks.json")}


def _scenario(path: Path) -> str:
    return re.sub(r"-\d{4}-\d\d-\d\dT.*", "", path.parent.name).removeprefix("server-")


def _outcomes(path: Path) -> Counter[tuple[str, str]]:
    # Of the lines that only tell what went over the wire there are more or less from run to run.
    checks = json.loads(path.read_text())
    return Counter((check["id"], check["status"]) for check in checks if check["status"] != "INFO")


def passed(found: Findings) -> int:
    return sum(count for checks in found.values() for (_, status), count in checks.items() if status == "SUCCESS")


async def directly(programs: Programs, revision: str, place: Path) -> Findings:
    async with everything("http") as url:
        return await findings(programs, url, revision, place)


async def through_a_door(programs: Programs, revision: str, place: Path, *options: str) -> Findings:
    async with everything("http", *options) as url, door_to(url) as door:
        return await findings(programs, door, revision, place)


@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_the_suite_finds_the_same_through_the_door(programs: Programs, tmp_path: Path, revision: str) -> None:
    without = await directly(programs, revision, tmp_path / "without")
    through = await through_a_door(programs, revision, tmp_path / "through")

    assert through == without
    assert passed(through) >= LEAST_PASSED[revision]


@pytest.mark.parametrize(
    ("revision", "server", "different"),
    [(MODERN, "legacy", MODERN_TO_LEGACY), (LEGACY, "modern", LEGACY_TO_MODERN)],
)
async def test_the_suite_finds_the_same_of_a_server_of_the_other_era(
    programs: Programs, tmp_path: Path, revision: str, server: str, different: frozenset[str]
) -> None:
    without = await directly(programs, revision, tmp_path / "without")
    bridged = await through_a_door(programs, revision, tmp_path / "bridged", "--only", server)

    assert without.keys() == bridged.keys()
    assert {name for name, checks in without.items() if bridged[name] != checks} == different
