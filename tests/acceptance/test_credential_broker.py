"""The credential broker's sample, end to end: its compose files' words are run, its sandbox shows what it can."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import pytest

from tests.acceptance.compose_file import FOLDER, ROOT

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

_NAMES = "127.0.0.1 localhost store proxy outside.sample.internal\n"


async def test_the_sample_shows_what_a_grant_opens_and_that_no_secret_is_in_its_sandbox(tmp_path: Path) -> None:
    """In a network namespace of its own, so that its ports and names are free."""
    (tmp_path / "hosts").write_text(_NAMES)
    (tmp_path / "stack").mkdir()
    process = await asyncio.create_subprocess_exec(
        *("bwrap", "--die-with-parent", "--unshare-user", "--uid", "10001", "--gid", "10001", "--unshare-net"),
        *("--dev-bind", "/", "/", "--ro-bind", str(tmp_path / "hosts"), "/etc/hosts", "--chdir", str(ROOT), "--"),
        *(sys.executable, "-m", "tests.acceptance.broker_program", str(tmp_path / "stack")),
        env={name: value for name, value in os.environ.items() if not re.match("GALLEY_|VAULT_|SSL_", name)},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(240):
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    lines = said.splitlines()
    assert [line for line in lines if not line.startswith("ok    ")] == []
    # The guide shows these lines; what differs from run to run is cut out.
    shown = (FOLDER / "README.md").read_text().partition("```text\n")[2].partition("```")[0]
    assert [same(line) for line in shown.splitlines()] == [same(line) for line in lines]


def same(line: str) -> str:
    return re.sub(r"galley_placeholder_\w+|any of \d+ files", "_", line)
