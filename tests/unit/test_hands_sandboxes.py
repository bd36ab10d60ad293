"""The life of a session's sandbox, over a scripted driver: every failure can be had at will."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
from blockbuster import blockbuster_ctx
from galley_sandbox.errors import SandboxUnavailable
from galley_sandbox.port import UPLOADS, Driver, Sandbox, Spec, TextBlock, ToolResult
from galley_server.hands import line, mounts, station, supply
from galley_server.hands.port import Hands, Mount, ToolCall, ToolOutcome
from galley_server.hands.sandboxes import SandboxHands
from galley_server.wire.content import TextBlock as WireText

from tests.unit.scripted_sandbox import Everyone, ScriptedDriver, ScriptedFiles

pytestmark = pytest.mark.anyio

S = "sesn_1"
UPLOAD = Mount("file_1", f"{UPLOADS}/data.csv")


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("galley_server"):
        yield


@pytest.fixture
def driver() -> ScriptedDriver:
    return ScriptedDriver()


@pytest.fixture
def files() -> ScriptedFiles:
    return ScriptedFiles()


@pytest.fixture
def sessions() -> Everyone:
    return Everyone()


Opener = Callable[..., AbstractAsyncContextManager[SandboxHands]]


@pytest.fixture
def opened(driver: ScriptedDriver, files: ScriptedFiles, sessions: Everyone) -> Opener:
    def open_(*drivers: Driver, most: int = 10) -> AbstractAsyncContextManager[SandboxHands]:
        return SandboxHands.open(drivers or [driver], sessions=sessions, files=files, most=most)

    return open_


@pytest.fixture
async def hands(opened: Opener) -> AsyncIterator[SandboxHands]:
    async with opened() as hands:
        yield hands


def bash(call_id: str) -> ToolCall:
    return ToolCall(call_id, "bash", {"command": "true"})


async def run(hands: Hands, call_id: str, mounts: Sequence[Mount] = (), last: str | None = None) -> ToolOutcome:
    incarnation = await hands.incarnation(S, mounts, last=last)
    return await hands.execute(S, bash(call_id), incarnation)


def said(outcome: ToolOutcome) -> str:
    return "\n".join(block.text for block in outcome.content if isinstance(block, WireText))


async def gather(*work: Awaitable[object]) -> list[object]:
    async with asyncio.timeout(5):
        return list(await asyncio.gather(*work, return_exceptions=True))


# Making one.


async def test_a_call_runs_in_a_sandbox_made_for_its_session(hands: SandboxHands, driver: ScriptedDriver) -> None:
    outcome = await run(hands, "sevt_1")
    assert outcome == ToolOutcome((WireText(text="ran sevt_1"),), is_error=False)
    assert driver.only.session_id == S


async def test_no_sandbox_is_made_before_one_is_needed(hands: SandboxHands, driver: ScriptedDriver) -> None:
    assert driver.provisions == 0


async def test_however_many_ask_at_once_one_sandbox_is_made(hands: SandboxHands, driver: ScriptedDriver) -> None:
    hands.prepare(S, [])
    hands.prepare(S, [])
    incarnations = await gather(*(hands.incarnation(S, []) for _ in range(5)))
    assert set(incarnations) == {driver.only.incarnation}
    assert driver.provisions == 1


async def test_the_sandbox_and_its_connection_are_kept_between_turns(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    for number in range(5):
        await run(hands, f"sevt_{number}")
    assert (driver.provisions, driver.only.connects) == (1, 1)


async def test_a_failure_is_told_to_every_waiter_and_tried_again_by_the_next_call(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    driver.gate = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(gather(hands.incarnation(S, []))) for _ in range(3)]
        await driver.began.wait()
        driver.broken = SandboxUnavailable("The engine is away.", fix="bring it back.")
        driver.gate.set()
    assert [str(task.result()[0]) for task in waiting] == [str(driver.broken)] * 3
    assert driver.provisions == 1
    driver.broken = None
    assert not (await run(hands, "sevt_1")).is_error


async def test_a_waiter_that_is_cancelled_takes_nobody_with_it(hands: SandboxHands, driver: ScriptedDriver) -> None:
    driver.gate = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(hands.incarnation(S, []))
        second = tasks.create_task(hands.incarnation(S, []))
        await driver.began.wait()
        first.cancel()
        driver.gate.set()
    assert second.result() == driver.only.incarnation
    assert driver.cancelled == 0


async def test_a_slow_session_does_not_hold_up_another(hands: SandboxHands, driver: ScriptedDriver) -> None:
    slow = driver.gate = asyncio.Event()
    hands.prepare("sesn_slow", [])
    await driver.began.wait()
    driver.gate = None
    async with asyncio.timeout(5):
        assert not (await run(hands, "sevt_1")).is_error
    slow.set()


async def test_a_sandbox_beyond_the_limit_is_refused_and_released_places_are_used_again(
    opened: Opener, driver: ScriptedDriver
) -> None:
    async with opened(most=2) as hands:
        await hands.incarnation("sesn_a", [])
        await hands.incarnation("sesn_b", [])
        with pytest.raises(SandboxUnavailable, match="2 sandboxes are in use"):
            await hands.incarnation("sesn_c", [])
        await hands.release("sesn_a")
        await hands.incarnation("sesn_c", [])
    assert {place.session_id for place in driver.places.values()} == {"sesn_b", "sesn_c"}


async def test_where_no_driver_works_the_error_names_each_fix_and_a_later_call_probes_again(
    opened: Opener, driver: ScriptedDriver
) -> None:
    docker, bubblewrap = driver, ScriptedDriver("other")
    docker.broken = SandboxUnavailable("No engine answers.", fix="start dockerd.")
    bubblewrap.broken = SandboxUnavailable("bwrap is not installed.", fix="apt install bubblewrap.")
    async with opened(docker, bubblewrap) as hands:
        with pytest.raises(SandboxUnavailable, match=r"No engine answers.*bwrap is not.*start dockerd.*apt install"):
            await hands.incarnation(S, [])
        bubblewrap.broken = None
        assert (await hands.incarnation(S, [])).startswith("other")


async def test_the_first_driver_that_works_is_chosen_once(opened: Opener, driver: ScriptedDriver) -> None:
    second = ScriptedDriver("second")
    driver.broken = SandboxUnavailable("No engine answers.", fix="start dockerd.")
    async with opened(driver, second) as hands:
        await hands.incarnation("sesn_a", [])
        driver.broken = None
        await hands.incarnation("sesn_b", [])
    assert (driver.provisions, second.provisions, second.probes) == (0, 2, 1)


async def test_a_driver_that_is_too_slow_is_an_error_and_not_a_hang(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "PROVISION_S", 0.01)
    driver.gate = asyncio.Event()
    with pytest.raises(SandboxUnavailable, match="did not start a sandbox within"):
        await hands.incarnation(S, [])
    assert driver.cancelled == 1


async def test_a_probe_that_takes_long_is_told_to_the_call_and_goes_on(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "PROBE_S", 0.01)
    driver.probe_gate = asyncio.Event()
    with pytest.raises(SandboxUnavailable, match="still being set up"):
        await hands.incarnation(S, [])
    monkeypatch.setattr(supply, "PROBE_S", 5.0)
    driver.probe_gate.set()
    await hands.incarnation(S, [])
    assert driver.probes == 1


@pytest.mark.parametrize("flaw", ["mute", "misbehaves"])
async def test_a_hand_that_fails_its_ping_is_replaced_before_a_call_is_sent(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    monkeypatch.setattr(station, "QUIET_S", 0.0)
    monkeypatch.setattr(station, "PING_S", 0.01)
    incarnation = await hands.incarnation(S, [])
    first = driver.only
    setattr(first, flaw, True)
    if flaw == "mute":
        first.alive = False
    assert await hands.incarnation(S, [], last=incarnation) != incarnation
    assert driver.destroyed == [first.id]


async def test_a_hand_that_takes_no_file_is_given_up(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "FILE_S", 0.01)
    await hands.incarnation(S, [])
    driver.only.mute = True
    with pytest.raises(SandboxUnavailable, match="lost while it was being prepared"):
        await hands.incarnation(S, [UPLOAD])


async def test_a_preparation_that_fails_is_silent_and_the_call_that_follows_is_told(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    driver.gate = asyncio.Event()
    hands.prepare(S, [])
    await driver.began.wait()
    driver.broken = SandboxUnavailable("The engine is away.", fix="bring it back.")
    driver.gate.set()
    with pytest.raises(SandboxUnavailable, match="The engine is away"):
        await hands.incarnation(S, [])


# Calls.


async def test_a_bad_input_is_refused_without_a_sandbox(hands: SandboxHands, driver: ScriptedDriver) -> None:
    outcome = await hands.execute(S, ToolCall("sevt_1", "read", {}), "any")
    assert (outcome.is_error, said(outcome)) == (True, "read: file_path is required")
    assert driver.provisions == 0


async def test_an_unknown_tool_is_an_error_outcome(hands: SandboxHands) -> None:
    outcome = await hands.execute(S, ToolCall("sevt_1", "launch", {}), "any")
    assert said(outcome) == "There is no tool named 'launch'."


async def test_what_the_hand_refuses_is_an_error_outcome(hands: SandboxHands, driver: ScriptedDriver) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.refuses = "too many results are waiting"
    assert said(await hands.execute(S, bash("sevt_1"), incarnation)) == "bash: too many results are waiting"


async def test_a_dropped_connection_is_opened_again_and_the_call_joined(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.drops = 2
    outcome = await hands.execute(S, bash("sevt_1"), incarnation)
    assert said(outcome) == "ran sevt_1"
    assert (driver.only.ran, driver.only.connects) == (["sevt_1"], 3)


async def test_a_connection_that_breaks_while_nobody_uses_it_is_opened_again(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "WATCH_S", 0.01)
    monkeypatch.setattr(station, "QUIET_S", 0.0)
    await hands.incarnation(S, [])
    place = driver.only
    place.cut()
    await place.until(lambda: place.connects == 2 and place.open_lines == 1)


async def test_a_connection_that_never_holds_is_given_up(hands: SandboxHands, driver: ScriptedDriver) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.drops = 1000
    outcome = await hands.execute(S, bash("sevt_1"), incarnation)
    assert said(outcome).startswith("interrupted, may have run: ")
    assert driver.only.ran == ["sevt_1"]


async def test_a_sandbox_lost_during_a_call_may_have_run_it_and_the_next_call_gets_a_fresh_one(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    first = driver.only
    gate = first.blocked["sevt_1"] = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(hands.execute(S, bash("sevt_1"), incarnation))
        await first.until(lambda: first.ran == ["sevt_1"])
        first.alive = False
        gate.set()
    assert call.result().is_error
    assert said(call.result()).startswith("interrupted, may have run: the sandbox was lost")
    outcome = await run(hands, "sevt_2", last=incarnation)
    assert said(outcome) == f"[{station.GONE}]\nran sevt_2"
    assert driver.only.incarnation != incarnation
    assert driver.destroyed == [first.id]
    assert said(await run(hands, "sevt_3", last=driver.only.incarnation)) == "ran sevt_3"


async def test_a_sandbox_that_died_between_turns_costs_no_call(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.alive = False
    monkeypatch.setattr(station, "QUIET_S", 0.0)
    outcome = await run(hands, "sevt_1", last=incarnation)
    assert (outcome.is_error, said(outcome)) == (False, f"[{station.GONE}]\nran sevt_1")


async def test_a_sandbox_that_is_known_to_have_just_died_costs_no_call(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.tells, driver.only.alive = True, False
    assert hands.at_hand(S, [], last=incarnation) is None
    outcome = await run(hands, "sevt_1", last=incarnation)
    assert (outcome.is_error, said(outcome)) == (False, f"[{station.GONE}]\nran sevt_1")


async def test_a_call_that_was_never_sent_because_its_line_had_broken_did_not_run(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.tells, driver.only.alive = True, False
    outcome = await hands.execute(S, bash("sevt_1"), incarnation)
    assert said(outcome).startswith("interrupted, did not run: ")


async def test_a_call_for_a_sandbox_that_is_gone_did_not_run(hands: SandboxHands, driver: ScriptedDriver) -> None:
    await hands.incarnation(S, [])
    outcome = await hands.execute(S, bash("sevt_1"), "another incarnation")
    assert said(outcome).startswith("interrupted, did not run: ")
    assert driver.only.ran == []


async def test_a_hand_that_breaks_the_protocol_is_never_believed_again(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    first = driver.only
    first.misbehaves = True
    outcome = await hands.execute(S, bash("sevt_1"), incarnation)
    assert said(outcome).startswith("interrupted, may have run: ")
    first.misbehaves = False
    await run(hands, "sevt_2")
    assert driver.only is not first
    assert (first.ran, first.connects) == ([], 1)


async def test_a_lost_sandbox_that_cannot_be_removed_is_not_replaced(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    driver.only.misbehaves = True
    await hands.execute(S, bash("sevt_1"), incarnation)
    driver.stuck_destroys = 1
    with pytest.raises(SandboxUnavailable, match="The engine is away"):
        await hands.incarnation(S, [])
    assert driver.provisions == 1
    await hands.incarnation(S, [])
    assert driver.provisions == 2


async def test_a_hand_that_answers_too_late_is_given_up(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galley_server.hands.sandboxes.GRACE_S", 0.0)
    incarnation = await hands.incarnation(S, [])
    driver.only.blocked["sevt_1"] = asyncio.Event()
    call = ToolCall("sevt_1", "bash", {"command": "true", "timeout_ms": 10})
    outcome = await hands.execute(S, call, incarnation)
    assert said(outcome).startswith("interrupted, may have run: the sandbox did not answer within")


async def test_a_call_whose_sandbox_cannot_be_reached_in_time_did_not_run(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galley_server.hands.sandboxes.GRACE_S", 0.0)
    incarnation = await hands.incarnation(S, [])
    driver.only.drops, driver.only.shut = 1, True
    call = ToolCall("sevt_1", "bash", {"command": "true", "timeout_ms": 10})
    joined = await hands.execute(S, call, incarnation)
    assert said(joined).startswith("interrupted, may have run: the sandbox did not answer")
    never_sent = await hands.execute(S, ToolCall("sevt_2", "bash", {"command": "true", "timeout_ms": 10}), incarnation)
    assert said(never_sent).startswith("interrupted, did not run: the sandbox could not be reached")
    assert driver.only.ran == ["sevt_1"]


async def test_a_sandbox_that_does_not_take_a_connection_is_replaced(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "CONNECT_S", 0.01)
    incarnation = await hands.incarnation(S, [])
    driver.only.drops, driver.only.shut = 1, True
    outcome = await hands.execute(S, bash("sevt_1"), incarnation)
    assert said(outcome) == f"interrupted, may have run: {line.LOST}"
    assert await hands.incarnation(S, []) != incarnation


async def test_an_acknowledged_result_is_forgotten_by_the_hand_even_over_a_drop(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    await run(hands, "sevt_1")
    place = driver.only
    await hands.acknowledge(S, "sevt_1")
    await place.until(lambda: place.acknowledged == {"sevt_1"})
    place.drops = 1
    await run(hands, "sevt_2")
    await hands.acknowledge(S, "sevt_2")
    await place.until(lambda: place.acknowledged == {"sevt_1", "sevt_2"})


async def test_a_result_that_is_acknowledged_too_early_is_acknowledged_again(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    place = driver.only
    gate = place.blocked["sevt_1"] = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hands.execute(S, bash("sevt_1"), incarnation))
        await place.until(lambda: place.ran == ["sevt_1"])
        await hands.acknowledge(S, "sevt_1")
        await run(hands, "sevt_2")
        gate.set()
    await hands.acknowledge(S, "sevt_2")
    await place.until(lambda: place.acknowledged == {"sevt_1", "sevt_2"})


async def test_a_call_is_sent_in_the_same_bytes_however_its_input_is_ordered(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    for given in ({"path": ".", "pattern": "*"}, {"pattern": "*", "path": "."}):
        await hands.recover(S, ToolCall("sevt_1", "glob", given), incarnation)
    assert driver.only.inputs == ['{"path": ".", "pattern": "*"}'] * 2


# Interrupts.


async def test_an_interrupt_kills_the_call_and_its_outcome_is_the_hands(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    place = driver.only
    place.blocked["sevt_1"] = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(hands.execute(S, bash("sevt_1"), incarnation))
        await place.until(lambda: place.ran == ["sevt_1"])
        await hands.interrupt(S, ["sevt_1", "sevt_unknown"])
    assert (call.result().is_error, said(call.result())) == (True, "cancelled")


async def test_a_call_that_will_not_die_is_given_up(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "SETTLE_S", 0.01)
    incarnation = await hands.incarnation(S, [])
    place = driver.only
    place.deaf = True
    place.blocked["sevt_1"] = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        call = tasks.create_task(hands.execute(S, bash("sevt_1"), incarnation))
        await place.until(lambda: place.ran == ["sevt_1"])
        await hands.interrupt(S, ["sevt_1"])
    assert said(call.result()) == "interrupted, may have run: the user interrupted"


async def test_an_interrupt_after_a_restart_reaches_a_call_that_nobody_waits_for(
    opened: Opener, driver: ScriptedDriver
) -> None:
    place = driver.place(S)
    gate = place.blocked["sevt_1"] = asyncio.Event()
    async with opened() as hands:
        await hands.interrupt(S, ["sevt_1"])
    assert gate.is_set()
    assert driver.provisions == 0


async def test_an_interrupt_without_a_sandbox_is_harmless(hands: SandboxHands, driver: ScriptedDriver) -> None:
    await hands.interrupt(S, ["sevt_1"])
    assert driver.provisions == 0


# Files.


async def test_files_are_in_place_before_the_first_call_and_put_once(
    hands: SandboxHands, driver: ScriptedDriver, files: ScriptedFiles
) -> None:
    writable = Mount("file_1", "/workspace/data.csv")
    await run(hands, "sevt_1", [UPLOAD, writable])
    await run(hands, "sevt_2", [UPLOAD, writable])
    assert driver.only.files == {UPLOAD.path: (b"a,b\n", 0o444), "/workspace/data.csv": (b"a,b\n", 0o644)}
    assert files.reads == ["file_1", "file_1"]


async def test_files_are_put_again_into_a_fresh_sandbox(hands: SandboxHands, driver: ScriptedDriver) -> None:
    incarnation = await hands.incarnation(S, [UPLOAD])
    driver.only.misbehaves = True
    await hands.execute(S, bash("sevt_1"), incarnation)
    await hands.incarnation(S, [UPLOAD])
    assert UPLOAD.path in driver.only.files


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        (Mount("file_gone", "/workspace/x"), "There is no file file_gone."),
        (Mount("file_big", "/workspace/x"), "no space left on device."),
    ],
)
async def test_a_file_that_cannot_be_put_is_told_once_and_stops_nothing(
    hands: SandboxHands, mount: Mount, reason: str
) -> None:
    first = await run(hands, "sevt_1", [mount, UPLOAD])
    assert said(first) == f"[The file /workspace/x could not be put into the sandbox: {reason}]\nran sevt_1"
    assert said(await run(hands, "sevt_2", [mount, UPLOAD])) == "ran sevt_2"


async def test_what_survived_keeps_its_edited_files_and_gets_missing_ones(
    opened: Opener, driver: ScriptedDriver
) -> None:
    place = driver.place(S)
    place.files["/workspace/data.csv"] = (b"edited", 0o644)
    async with opened() as hands:
        await hands.incarnation(S, [UPLOAD, Mount("file_1", "/workspace/data.csv")])
    assert place.files == {"/workspace/data.csv": (b"edited", 0o644), UPLOAD.path: (b"a,b\n", 0o444)}


# Restarts.


async def test_closing_leaves_the_sandbox_in_place_and_the_next_server_goes_on_with_it(
    opened: Opener, driver: ScriptedDriver
) -> None:
    async with opened() as hands:
        incarnation = await hands.incarnation(S, [])
        place = driver.only
    assert (place.alive, place.open_lines, driver.destroyed, driver.closed) == (True, 0, [], True)
    async with opened() as hands:
        assert await hands.incarnation(S, [], last=incarnation) == incarnation
        assert said(await hands.execute(S, bash("sevt_1"), incarnation)) == "ran sevt_1"
    assert driver.provisions == 1


async def test_what_survived_is_connected_before_anybody_calls(opened: Opener, driver: ScriptedDriver) -> None:
    place = driver.place(S)
    async with opened():
        await place.until(lambda: place.open_lines == 1)
    assert driver.provisions == 0


async def test_a_call_that_finished_before_the_crash_is_not_run_again(opened: Opener, driver: ScriptedDriver) -> None:
    place = driver.place(S)
    place.kept["sevt_1"] = ToolResult((TextBlock("kept"),), is_error=False)
    async with opened() as hands:
        assert said(await hands.recover(S, bash("sevt_1"), place.incarnation)) == "kept"
    assert place.ran == []


async def test_a_call_that_never_arrived_before_the_crash_is_run(opened: Opener, driver: ScriptedDriver) -> None:
    place = driver.place(S)
    async with opened() as hands:
        assert said(await hands.recover(S, bash("sevt_1"), place.incarnation)) == "ran sevt_1"
    assert place.ran == ["sevt_1"]


async def test_a_call_of_a_sandbox_that_did_not_survive_may_have_run_and_is_not_run_again(
    opened: Opener, driver: ScriptedDriver
) -> None:
    place = driver.place(S)
    async with opened() as hands:
        outcome = await hands.recover(S, bash("sevt_1"), "the one before")
    assert outcome.is_error
    assert said(outcome).startswith("interrupted, may have run: ")
    assert (place.ran, driver.provisions) == ([], 0)


async def test_of_two_that_survived_the_one_that_the_log_names_is_kept(opened: Opener, driver: ScriptedDriver) -> None:
    first, second = driver.place(S), driver.place(S)
    async with opened() as hands:
        assert await hands.incarnation(S, [], last=first.incarnation) == first.incarnation
        async with asyncio.timeout(5):
            await driver.removed.wait()
    assert driver.destroyed == [second.id]


async def test_what_belongs_to_a_session_that_is_over_is_removed_at_the_start(
    opened: Opener, driver: ScriptedDriver, sessions: Everyone
) -> None:
    over, alive = driver.place("sesn_over"), driver.place(S)
    sessions.over = {"sesn_over"}
    driver.stuck_destroys = 0
    async with opened() as hands:
        await hands.incarnation(S, [])
        async with asyncio.timeout(5):
            await driver.removed.wait()
    assert (driver.destroyed, alive.alive) == ([over.id], True)


async def test_a_driver_that_was_away_at_the_start_is_asked_for_survivors_before_it_provisions(
    opened: Opener, driver: ScriptedDriver
) -> None:
    place = driver.place(S)
    driver.broken = SandboxUnavailable("No engine answers.", fix="start dockerd.")
    async with opened() as hands:
        with pytest.raises(SandboxUnavailable):
            await hands.incarnation(S, [])
        driver.broken = None
        assert await hands.incarnation(S, []) == place.incarnation
    assert driver.provisions == 0


async def test_what_another_driver_made_under_earlier_settings_is_used_and_not_made_again(
    driver: ScriptedDriver, files: ScriptedFiles, sessions: Everyone
) -> None:
    former = ScriptedDriver("former")
    place = former.place(S)
    async with SandboxHands.open([driver], sessions=sessions, files=files, former=[former]) as hands:
        assert await hands.incarnation(S, []) == place.incarnation
        await hands.incarnation("sesn_new", [])
    assert (driver.provisions, former.provisions) == (1, 0)


# Release.


async def test_a_released_sandbox_is_gone_and_releasing_again_is_harmless(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    await hands.incarnation(S, [])
    await hands.release(S)
    assert (driver.places, len(driver.destroyed)) == ({}, 1)
    await hands.release(S)
    await hands.release("sesn_never_seen")
    assert len(driver.destroyed) == 1


async def test_a_survivor_that_nobody_used_is_released_too(opened: Opener, driver: ScriptedDriver) -> None:
    driver.place(S)
    async with opened() as hands:
        await hands.release(S)
    assert driver.places == {}


async def test_releasing_while_the_sandbox_is_being_made_leaves_nothing(
    hands: SandboxHands, driver: ScriptedDriver
) -> None:
    driver.gate = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(gather(hands.incarnation(S, [])))
        await driver.began.wait()
        await hands.release(S)
    assert "The session is over" in str(waiting.result()[0])
    assert (driver.cancelled, driver.places) == (1, {})


async def test_releasing_ends_a_call_under_way(hands: SandboxHands, driver: ScriptedDriver) -> None:
    incarnation = await hands.incarnation(S, [])
    place = driver.only
    place.blocked["sevt_1"] = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        call = tasks.create_task(hands.execute(S, bash("sevt_1"), incarnation))
        await place.until(lambda: place.ran == ["sevt_1"])
        await hands.release(S)
    assert said(call.result()).startswith("interrupted, may have run")


async def test_a_sandbox_that_resists_is_removed_later(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "DESTROY_AGAIN_S", (0.0,))
    await hands.incarnation(S, [])
    driver.stuck_destroys = 3
    await hands.release(S)
    assert driver.places == {}


async def test_releasing_all_leaves_nothing(opened: Opener, driver: ScriptedDriver) -> None:
    driver.place("sesn_survivor")
    async with opened() as hands:
        await hands.incarnation(S, [])
        await hands.release_all()
    assert driver.places == {}


# Closing.


async def test_a_call_under_way_at_the_close_is_not_reported_as_lost(opened: Opener, driver: ScriptedDriver) -> None:
    async with opened() as hands:
        incarnation = await hands.incarnation(S, [])
        place = driver.only
        gate = place.blocked["sevt_1"] = asyncio.Event()
        waiting = asyncio.gather(hands.execute(S, bash("sevt_1"), incarnation))
        await place.until(lambda: place.ran == ["sevt_1"])
    place.drops = 1
    gate.set()
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert done == set()
    waiting.cancel()
    assert await gather(waiting) != []


async def test_a_closed_hands_takes_preparations_and_releases_without_a_word(
    opened: Opener, driver: ScriptedDriver
) -> None:
    async with opened() as hands:
        pass
    hands.prepare(S, [])
    await hands.release(S)
    assert driver.provisions == 0


async def test_an_unforeseen_failure_is_told_in_words_and_harms_no_other_session(
    hands: SandboxHands, driver: ScriptedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug(spec: Spec) -> Sandbox:
        raise ZeroDivisionError

    await hands.incarnation("sesn_other", [])
    monkeypatch.setattr(driver, "provision", bug)
    with pytest.raises(SandboxUnavailable, match="failed unexpectedly"):
        await hands.incarnation(S, [])
    outcome = await hands.execute("sesn_other", bash("sevt_1"), driver.only.incarnation)
    assert said(outcome) == "ran sevt_1"


async def test_an_unforeseen_failure_of_a_call_still_gives_an_outcome(
    hands: SandboxHands, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = await hands.incarnation(S, [])
    monkeypatch.setattr(station, "from_sandbox", None)
    outcome = await hands.execute(S, bash("sevt_1"), incarnation)
    assert said(outcome).startswith("interrupted, may have run: the server failed unexpectedly")


async def test_the_sandbox_hands_keep_the_ports_promise(hands: SandboxHands) -> None:
    port: Hands = hands
    assert port.offered is not None
