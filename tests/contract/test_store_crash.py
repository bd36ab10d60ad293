"""A store whose process is killed at any moment has every row it acknowledged, in a chain that holds."""

import random
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from tests.contract.store_kit import open_kit

KILLS = 15
ROOT = Path(__file__).parents[2]


def append_until_killed(path: Path, lines: int) -> dict[str, int]:
    """Run the program, kill it after so many acknowledgements, and return the last one of each session."""
    command = [sys.executable, "-m", "tests.contract.appending_program", str(path)]
    acknowledged: dict[str, int] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout, start=1):
            if count == lines:
                process.kill()
            session_id, _, seq = line.partition(" ")
            if seq.endswith("\n"):  # the last line may have been cut off
                acknowledged[session_id] = int(seq)
    return acknowledged


@pytest.mark.anyio
async def test_what_was_acknowledged_survives_every_kill(tmp_path: Path) -> None:
    path = tmp_path / "galley.db"
    acknowledged: dict[str, int] = {}
    for _ in range(KILLS):
        acknowledged |= await anyio.to_thread.run_sync(append_until_killed, path, random.randint(1, 300))
    async with open_kit(path) as kit:
        for session_id, seq in acknowledged.items():
            rows = await kit.store.read(session_id)
            assert len(rows) >= seq
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            assert (await kit.store.verify(session_id)).head.seq == len(rows)
            assert (await kit.store.summary(session_id)).rows == len(rows)
    assert len(acknowledged) >= KILLS
