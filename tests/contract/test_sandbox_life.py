"""What every driver promises of its sandboxes: started, found, left alone and removed."""

import asyncio
import os
from pathlib import Path

import pytest
from galley_sandbox.errors import SandboxLost
from galley_sandbox.port import (
    Driver,
    Hand,
    Sandbox,
    Spec,
)

from tests.contract.sandbox_kit import LIMITS, bash, hand_process, home_of, make_driver

pytestmark = pytest.mark.anyio


async def test_a_new_driver_adopts_what_the_old_one_left(
    backend: str, driver: Driver, sandbox: Sandbox, tmp_path: Path
) -> None:
    async with sandbox.connect() as hand:
        await bash(hand, "echo kept > file")
    later = make_driver(backend, tmp_path / "sandboxes", home_id=home_of(tmp_path))
    (adopted,) = await later.adopt()
    assert (adopted.id, adopted.session_id, adopted.incarnation) == (
        sandbox.id,
        sandbox.session_id,
        sandbox.incarnation,
    )
    async with adopted.connect() as hand:
        assert (await bash(hand, "cat file")).text == "kept"


async def test_another_home_neither_adopts_nor_destroys(backend: str, sandbox: Sandbox, tmp_path: Path) -> None:
    stranger = make_driver(backend, tmp_path / "sandboxes", home_id="another_home")
    assert await stranger.adopt() == []
    await stranger.destroy(sandbox.id)
    async with sandbox.connect() as hand:
        assert (await bash(hand, "echo alive")).text == "alive"


async def test_destroy_is_final_and_may_be_repeated(driver: Driver) -> None:
    sandbox = await driver.provision(Spec("sesn_short", LIMITS))
    await driver.destroy(sandbox.id)
    await driver.destroy(sandbox.id)
    await driver.destroy("sbx_never")
    with pytest.raises(SandboxLost):
        async with sandbox.connect():
            pass
    assert await driver.adopt() == []


async def test_sandboxes_do_not_see_each_other(driver: Driver, hand: Hand) -> None:
    await bash(hand, "echo mine > /workspace/f; echo mine > /tmp/f; sleep 1234 &")
    other = await driver.provision(Spec("sesn_other", LIMITS))
    async with other.connect() as neighbour:
        assert (await bash(neighbour, "ls /workspace /tmp; pgrep -x sleep")).text.count("f") == 0


async def test_a_hand_that_no_server_visits_ends_itself(backend: str, tmp_path: Path) -> None:
    driver = make_driver(backend, tmp_path / "sandboxes", home_id=home_of(tmp_path), idle_exit_s=0.5)
    sandbox = await driver.provision(Spec("sesn_lonely", LIMITS))
    handle = os.pidfd_open(await hand_process(backend, sandbox, tmp_path / "sandboxes"))
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, gone.set)
    async with asyncio.timeout(20):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(handle)
    os.close(handle)
    assert await driver.adopt() == []


async def test_a_cancelled_provision_leaves_nothing(driver: Driver) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await driver.provision(Spec("sesn_hasty", LIMITS))
    assert await driver.adopt() == []


async def test_several_sandboxes_start_at_once(driver: Driver) -> None:
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(driver.provision(Spec(f"sesn_{n}", LIMITS))) for n in range(4)]
    assert len({task.result().incarnation for task in started}) == 4
    assert len(await driver.adopt()) == 4


async def test_the_probe_really_runs_something_and_leaves_nothing(driver: Driver) -> None:
    probe = await driver.probe()
    assert probe.driver == driver.name
    assert await driver.adopt() == []
