"""A start that its server did not live to finish is cleared away by the next one, at once and wherever it stood."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from galley_sandbox import process
from galley_sandbox.bubblewrap import start
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.bubblewrap.host import inspect
from galley_sandbox.bubblewrap.state import State
from galley_sandbox.port import Limits, MiB, Spec

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

HOME = "home_half_started"
STATE = State("sbx_half", HOME, "sesn_half", "inc_5e1f0c6e2b7a4d10a1b2c3d4e5f60718", Limits(disk_bytes=16 * MiB), None)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Bubblewrap]:
    driver = Bubblewrap(tmp_path, HOME)
    yield driver
    for sandbox in await driver.adopt():
        await driver.destroy(sandbox.id)


async def launch(root: Path, *, let_end: bool) -> None:
    """Do what a server does up to the launch, and then what its death does: close every descriptor."""
    host = await asyncio.to_thread(inspect)
    with ExitStack() as opened:
        prepared = await asyncio.to_thread(start.prepare, host, root, STATE, 900.0, opened)
        script = await asyncio.create_subprocess_exec(
            *prepared.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=prepared.log,
            stderr=prepared.log,
            env=prepared.environment,
            pass_fds=prepared.passed,
            start_new_session=True,
        )
    if let_end:
        await script.wait()


def left() -> list[process.ProcessName]:
    return process.bearing(STATE.incarnation.encode())


async def test_a_half_started_sandbox_ends_by_itself_if_no_server_ever_comes(
    driver: Bubblewrap, tmp_path: Path
) -> None:
    await launch(tmp_path, let_end=True)
    async with asyncio.timeout(10):
        while await asyncio.to_thread(left):
            pass


@pytest.mark.parametrize("let_end", [False, True], ids=["during the start script", "after it"])
async def test_a_half_started_sandbox_is_gone_at_the_next_start(
    driver: Bubblewrap, tmp_path: Path, let_end: bool
) -> None:
    alive = await driver.provision(Spec("sesn_alive", Limits(disk_bytes=16 * MiB)))
    await launch(tmp_path, let_end=let_end)
    async with asyncio.timeout(5):
        adopted = await Bubblewrap(tmp_path, HOME).adopt()
    assert [sandbox.id for sandbox in adopted] == [alive.id]
    assert await asyncio.to_thread(left) == []
    assert [name for name in os.listdir(tmp_path) if name.startswith("sbx_")] == [alive.id]
