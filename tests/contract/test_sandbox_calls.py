"""What every sandbox promises of calls: no effect twice, whoever dies; all of it ends when cancelled."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from galley_sandbox.errors import CallRefused, SandboxLost
from galley_sandbox.port import (
    Acknowledged,
    Driver,
    Finished,
    Hand,
    Running,
    Sandbox,
    Spec,
    Unknown,
)

from tests.contract.sandbox_kit import COUNT, LIMITS, accepted, bash, hand_process, home_of, outcome, until, use

pytestmark = pytest.mark.anyio


async def test_a_known_call_is_joined_and_its_result_kept_until_acknowledged(hand: Hand) -> None:
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(hand.call("sevt_a", "bash", {"command": COUNT})) for _ in range(2)]
        await until(hand, "[ -e /workspace/started ]")
        assert await hand.query("sevt_a") == Running()
        await bash(hand, "touch /workspace/go", shell="other")
    assert {task.result().text for task in both} == {"done"}
    assert await hand.query("sevt_a") == Finished(both[0].result())
    assert (await hand.call("sevt_a", "bash", {"command": COUNT})).text == "done"
    await hand.acknowledge("sevt_a")
    assert await hand.query("sevt_a") == Acknowledged()
    with pytest.raises(CallRefused, match="does not run again"):
        await hand.call("sevt_a", "bash", {"command": COUNT})
    assert await hand.query("sevt_b") == Unknown()
    assert (await bash(hand, "cat count")).text == "x"


async def test_an_id_is_never_used_for_two_things(hand: Hand) -> None:
    await hand.call("sevt_a", "bash", {"command": "echo 1"})
    with pytest.raises(CallRefused, match="another tool or input"):
        await hand.call("sevt_a", "bash", {"command": "echo 2"})
    with pytest.raises(CallRefused, match="no tool 'sing'"):
        await hand.call("sevt_c", "sing", {})


CLIENT = """
import asyncio, sys
from pathlib import Path
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker

async def main(backend, root, home_id, command):
    driver = Docker(home_id) if backend == "docker" else Bubblewrap(Path(root), home_id)
    (sandbox,) = await driver.adopt()
    async with sandbox.connect() as hand:
        await hand.call("sevt_a", "bash", {"command": command})

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_call_outlives_the_process_that_asked_for_it(
    backend: str, driver: Driver, sandbox: Sandbox, tmp_path: Path
) -> None:
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, backend, str(tmp_path / "sandboxes"), home_of(tmp_path), COUNT
    )
    async with sandbox.connect() as hand:
        await until(hand, "[ -e /workspace/started ]")
    client.kill()
    await client.wait()
    async with sandbox.connect() as hand:
        assert await hand.query("sevt_a") == Running()
        await bash(hand, "touch /workspace/go", shell="other")
        assert (await hand.call("sevt_a", "bash", {"command": COUNT})).text == "done"
        assert (await bash(hand, "cat count")).text == "x"


async def test_a_dropped_stream_is_told_to_whoever_waits(sandbox: Sandbox) -> None:
    async with asyncio.TaskGroup() as tasks, sandbox.connect() as hand:
        waiting = tasks.create_task(outcome(hand, "sevt_a", COUNT))
        await until(hand, "[ -e /workspace/started ]")
    assert isinstance(waiting.result(), SandboxLost)
    with pytest.raises(SandboxLost):
        await hand.query("sevt_a")


async def test_giving_up_on_a_call_does_not_end_it(hand: Hand) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await hand.call("sevt_a", "bash", {"command": COUNT})
    await bash(hand, "touch /workspace/go", shell="other")
    assert (await hand.call("sevt_a", "bash", {"command": COUNT})).text == "done"
    assert (await bash(hand, "cat count")).text == "x"


async def test_a_killed_hand_is_lost_for_good(backend: str, driver: Driver, sandbox: Sandbox, tmp_path: Path) -> None:
    pid = await hand_process(backend, sandbox, tmp_path / "sandboxes")
    async with asyncio.TaskGroup() as tasks, sandbox.connect() as hand:
        waiting = tasks.create_task(outcome(hand, "sevt_a", COUNT))
        await until(hand, "[ -e /workspace/started ]")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            assert isinstance(await waiting, SandboxLost)
    with pytest.raises(SandboxLost):
        async with sandbox.connect():
            pass
    assert await driver.adopt() == []
    successor = await driver.provision(Spec(sandbox.session_id, LIMITS))
    assert successor.incarnation != sandbox.incarnation


async def test_cancel_kills_all_that_the_call_started(hand: Hand) -> None:
    command = (
        "sleep 1111 & (setsid sleep 1111 &) ; setsid sh -c 'trap : TERM INT HUP; sleep 1111; sleep 1111' & "
        "nohup sleep 1111 >/dev/null 2>&1 & touch started; sleep 1111"
    )
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(hand.call("sevt_a", "bash", {"command": command}))
        await until(hand, '[ -e started ] && [ "$(pgrep -c -x sleep)" -ge 5 ]')
        await hand.cancel("sevt_a")
    assert (call.result().text, call.result().is_error) == ("bash: cancelled", True)
    assert (await bash(hand, "pgrep -x sleep; pgrep -f 1111", shell="other")).text == ""


async def test_cancel_leaves_other_shells_alone(hand: Hand) -> None:
    await bash(hand, "KEPT=1; sleep 1112 &", shell="other")
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(hand.call("sevt_a", "bash", {"command": "touch started; sleep 1111"}))
        await until(hand, "[ -e started ]")
        await hand.cancel("sevt_a")
    assert call.result().is_error
    assert (await bash(hand, "echo $KEPT; pgrep -c -f 'sleep 1112'", shell="other")).text == "1\n1"


async def test_a_call_that_waits_for_the_shell_is_cancelled_without_running(hand: Hand) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hand.call("sevt_a", "bash", {"command": COUNT}))
        await until(hand, "[ -e /workspace/started ]")
        second = tasks.create_task(hand.call("sevt_b", "bash", {"command": "touch /workspace/ran"}))
        await accepted(hand, "sevt_b")
        await hand.cancel("sevt_b")
        assert (await second).text == "bash: cancelled"
        await bash(hand, "touch go", shell="other")
    assert (await bash(hand, "ls ran")).is_error


async def test_cancelling_what_is_over_or_unknown_changes_nothing(hand: Hand) -> None:
    result = await hand.call("sevt_a", "bash", {"command": "echo 1"})
    await hand.cancel("sevt_a")
    await hand.cancel("sevt_unknown")
    assert await hand.query("sevt_a") == Finished(result)
    assert (await bash(hand, "echo 2")).text == "2"


async def test_reads_go_on_while_a_command_runs(hand: Hand) -> None:
    async with asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(hand.call("sevt_a", "bash", {"command": COUNT}))
        await until(hand, "[ -e started ]")
        reads = [use(hand, "read", {"file_path": "count"}) for _ in range(8)]
        assert {result.text for result in await asyncio.gather(*reads)} == {"x\n"}
        assert not slow.done()
        await bash(hand, "touch go", shell="other")


async def test_commands_of_one_shell_run_in_the_order_they_came(hand: Hand) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(use(hand, "bash", {"command": f"echo {number} >> order"}))
    assert (await bash(hand, "cat order")).text.split() == [str(number) for number in range(20)]
