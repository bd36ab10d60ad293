"""What every sandbox promises of limits: the command ends with an error, and the sandbox goes on."""

import asyncio

import pytest
from galley_sandbox.port import (
    Driver,
    Hand,
    Limits,
    MiB,
    Spec,
)

from tests.contract.sandbox_kit import (
    accepted,
    bash,
    use,
)

pytestmark = pytest.mark.anyio


async def test_memory_over_the_limit_ends_the_command_and_not_the_sandbox(hand: Hand) -> None:
    result = await bash(hand, "python3 -c 'x = bytearray(400 * 1024 * 1024)'; exit_code=$?; (exit $exit_code)")
    assert result.is_error
    assert result.text.startswith("resource_limit_exceeded: memory")
    await use(hand, "bash", {"restart": True})
    assert (await bash(hand, "echo alive")).text == "alive"


async def test_processes_over_the_limit_are_an_error_and_a_restart_ends_them(hand: Hand) -> None:
    result = await bash(hand, "for i in $(seq 200); do sleep 1234 & done; wait", timeout_ms=2_000)
    assert result.is_error
    assert result.text.startswith("resource_limit_exceeded: pids")
    await use(hand, "bash", {"restart": True})
    result = await bash(
        hand, 'python3 -c \'import os\nfor i in range(200):\n  if os.fork() == 0: os.execlp("sleep", "sleep", "1234")\''
    )
    assert result.text.startswith("resource_limit_exceeded: pids")
    await use(hand, "bash", {"restart": True})
    assert (await bash(hand, "echo alive; pgrep -c -x sleep || true")).text == "alive\n0"


async def test_a_fork_bomb_is_cancelled_like_anything_else(hand: Hand) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(
            hand.call("sevt_a", "bash", {"command": "touch started; bomb() { bomb | bomb & }; bomb; sleep 1111"})
        )
        await accepted(hand, "sevt_a")
        # With no process left for it, looking may fail as well; a first fork of the bomb is all it takes.
        for _ in range(100):
            if not (await use(hand, "read", {"file_path": "started"})).is_error:
                break
        await hand.cancel("sevt_a")
    assert call.result().is_error
    await use(hand, "bash", {"restart": True})
    assert (await bash(hand, "echo alive")).text == "alive"


async def test_a_full_disk_is_an_error_and_not_a_dead_hand(hand: Hand) -> None:
    result = await bash(hand, "dd if=/dev/zero of=fill bs=1M count=100")
    assert result.is_error
    assert result.text.startswith("resource_limit_exceeded: disk")
    wrote = await use(hand, "write", {"file_path": "more", "content": "x" * MiB})
    assert wrote.is_error
    assert wrote.text.startswith("resource_limit_exceeded: disk")
    assert (await bash(hand, "rm fill; echo room > more; cat more")).text == "room"


async def test_output_without_end_is_cut_off(hand: Hand) -> None:
    result = await bash(hand, "yes")
    assert result.is_error
    assert result.text.startswith("resource_limit_exceeded: output")
    await use(hand, "bash", {"restart": True})
    assert (await bash(hand, "echo alive")).text == "alive"


async def test_no_call_takes_longer_than_it_is_given(hand: Hand) -> None:
    result = await hand.call("sevt_a", "bash", {"command": "sleep 60"}, timeout_s=0.3)
    assert result.is_error
    assert result.text.startswith("resource_limit_exceeded: wall_time")


async def test_cpu_time_over_the_limit_ends_the_command(driver: Driver) -> None:
    sandbox = await driver.provision(Spec("sesn_cpu", Limits(memory_bytes=192 * MiB, disk_bytes=32 * MiB, cpu_s=1)))
    async with sandbox.connect() as hand:
        result = await bash(hand, "sh -c 'while :; do :; done'")
        assert result.text.startswith("resource_limit_exceeded: cpu_time")
        assert (await bash(hand, "echo alive")).text == "alive"


async def test_the_drivers_report_names_every_limit(driver: Driver) -> None:
    report = {status.name: status for status in await driver.limits_report()}
    assert set(report) == {"memory", "cpus", "cpu_time", "pids", "disk", "wall_time", "output", "network"}
    assert all(status.means for status in report.values())
