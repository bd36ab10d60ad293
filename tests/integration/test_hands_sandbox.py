"""The hands over real sandboxes: real files, real processes, real restarts."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from galley_sandbox.port import UPLOADS, Driver
from galley_server.hands.port import Mount, ToolCall, ToolOutcome
from galley_server.hands.sandboxes import SandboxHands
from galley_server.ids import new_id
from galley_server.wire.base import JSON
from galley_server.wire.content import TextBlock

from tests.integration.hands_program import driver_of

pytestmark = pytest.mark.anyio

S = "sesn_integration"
CSV = b"product,price\nfork,2\n"
UPLOAD = Mount("file_1", f"{UPLOADS}/sales.csv")


class Files:
    async def content(self, file_id: str) -> AsyncIterator[bytes]:
        for piece in (CSV[:5], CSV[5:]):
            yield piece


class Sessions:
    def __init__(self) -> None:
        self.over: set[str] = set()

    async def alive(self, session_ids: Collection[str]) -> Collection[str]:
        return [session_id for session_id in session_ids if session_id not in self.over]


NewDriver = Callable[[], Driver]


@dataclass(frozen=True, slots=True)
class Home:
    """Makes drivers of one home, each as a freshly started server would."""

    driver_name: str
    folder: Path
    home_id: str
    made: list[Driver]

    def new_driver(self) -> Driver:
        self.made.append(driver_of(self.driver_name, self.folder, self.home_id))
        return self.made[-1]


@pytest.fixture(
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ]
)
async def home(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Home]:
    """What a test leaves in it is removed at the end."""
    home = Home(request.param, tmp_path / "sandboxes", new_id("req"), [])
    yield home
    driver = home.new_driver()
    for sandbox in await driver.adopt():
        await driver.destroy(sandbox.id)
    for driver in home.made:
        await driver.close()


@pytest.fixture
def new_driver(home: Home) -> NewDriver:
    return home.new_driver


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def opened(new_driver: NewDriver, sessions: Sessions) -> Callable[[], AbstractAsyncContextManager[SandboxHands]]:
    return lambda: SandboxHands.open([new_driver()], sessions=sessions, files=Files())


Opened = Callable[[], AbstractAsyncContextManager[SandboxHands]]


@pytest.fixture
async def hands(opened: Opened) -> AsyncIterator[SandboxHands]:
    async with opened() as hands:
        yield hands


async def use(hands: SandboxHands, name: str, *, last: str | None = None, **given: JSON) -> ToolOutcome:
    async with asyncio.timeout(60):
        incarnation = await hands.incarnation(S, [UPLOAD], last=last)
        call = ToolCall(new_id("sevt"), name, given)
        outcome = await hands.execute(S, call, incarnation)
        await hands.acknowledge(S, call.event_id)
        return outcome


def said(outcome: ToolOutcome) -> str:
    return "\n".join(block.text for block in outcome.content if isinstance(block, TextBlock))


async def begun(hands: SandboxHands, incarnation: str) -> None:
    """Wait until a command has made the file `begun`. A read does not queue behind a busy shell."""
    async with asyncio.timeout(30):
        while (await hands.execute(S, ToolCall(new_id("sevt"), "read", {"file_path": "begun"}), incarnation)).is_error:
            pass


async def test_the_tools_work_on_one_workspace_and_one_shell(hands: SandboxHands) -> None:
    assert said(await use(hands, "write", file_path="a/b.txt", content="one\ntwo\n")).startswith("wrote 8 bytes")
    assert said(await use(hands, "edit", file_path="a/b.txt", old_string="two", new_string="three")).endswith(
        "(1 replacement(s))"
    )
    assert said(await use(hands, "bash", command="cd a; here=$PWD")) == ""
    assert said(await use(hands, "bash", command='cat b.txt; echo "$here"')) == "one\nthree\n/workspace/a"
    assert said(await use(hands, "read", file_path="a/b.txt", view_range=[2, 2])).strip() == "three"
    assert said(await use(hands, "glob", pattern="**/*.txt")) == "/workspace/a/b.txt"
    assert said(await use(hands, "grep", pattern="^thr")).rstrip() == "/workspace/a/b.txt:2:three"


async def test_a_failing_command_is_an_error_outcome_that_says_something(hands: SandboxHands) -> None:
    loud, silent = await use(hands, "bash", command="echo no; (exit 3)"), await use(hands, "bash", command="false")
    assert (loud.is_error, said(loud)) == (True, "no")
    assert (silent.is_error, said(silent)) == (True, "The tool failed without any output.")


async def test_a_sessions_file_is_there_before_the_first_call_and_cannot_be_changed(hands: SandboxHands) -> None:
    assert said(await use(hands, "bash", command=f"cat {UPLOAD.path}")) == CSV.decode().rstrip()
    assert (await use(hands, "write", file_path=UPLOAD.path, content="x")).is_error
    assert (await use(hands, "bash", command=f"echo x > {UPLOAD.path}")).is_error
    assert said(await use(hands, "read", file_path=UPLOAD.path)) == CSV.decode()


async def test_an_output_too_long_for_a_result_is_kept_in_a_file(hands: SandboxHands) -> None:
    outcome = await use(hands, "bash", command="seq 1 100000")
    assert not outcome.is_error
    assert len(said(outcome)) <= 100_000
    path = next(word for word in said(outcome).split() if word.startswith("/mnt/session/tool_results/")).rstrip(";")
    assert said(await use(hands, "bash", command=f"tail -n 1 {path}")) == "100000"


async def test_an_interrupt_ends_a_command_at_once(hands: SandboxHands) -> None:
    incarnation = await hands.incarnation(S, [])
    call = ToolCall(new_id("sevt"), "bash", {"command": "echo 1 > begun; sleep 60"})
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(hands.execute(S, call, incarnation))
        await begun(hands, incarnation)
        await hands.interrupt(S, [call.event_id])
    assert running.result().is_error


async def test_a_call_that_runs_over_a_restart_is_joined_and_has_its_effect_once(opened: Opened) -> None:
    call = ToolCall(new_id("sevt"), "bash", {"command": "echo x >> count; echo 1 > begun; sleep 1; wc -l < count"})
    async with opened() as before:
        incarnation = await before.incarnation(S, [UPLOAD])
        async with asyncio.TaskGroup() as tasks:
            lost = tasks.create_task(before.execute(S, call, incarnation))
            await begun(before, incarnation)
            lost.cancel()
    async with opened() as after, asyncio.timeout(30):
        assert said(await after.recover(S, call, incarnation)).strip() == "1"
        assert said(await after.recover(S, call, incarnation)).strip() == "1"
        assert await after.incarnation(S, [UPLOAD], last=incarnation) == incarnation
        assert said(await use(after, "bash", last=incarnation, command="wc -l < count")).strip() == "1"


async def test_a_call_whose_server_is_killed_is_joined_by_the_next_one_and_has_its_effect_once(
    opened: Opened, home: Home
) -> None:
    command = "echo x >> count; echo 1 > begun; sleep 1; wc -l < count"
    call = ToolCall(new_id("sevt"), "bash", {"command": command})
    arguments = [home.driver_name, str(home.folder), home.home_id, S, call.event_id, command]
    async with asyncio.timeout(60):
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.hands_program", *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert killed.stdout is not None
        incarnation = (await killed.stdout.readline()).decode().strip()
        killed.kill()
        await killed.wait()
        async with opened() as after:
            assert said(await after.recover(S, call, incarnation)).strip() == "1"
            assert said(await use(after, "bash", last=incarnation, command="wc -l < count")).strip() == "1"


async def test_a_call_dispatched_but_never_sent_before_a_restart_is_run_by_the_next_server(opened: Opened) -> None:
    async with opened() as before:
        incarnation = await before.incarnation(S, [])
    async with opened() as after, asyncio.timeout(30):
        outcome = await after.recover(S, ToolCall(new_id("sevt"), "bash", {"command": "echo ran"}), incarnation)
    assert said(outcome) == "ran"


async def test_a_sandbox_that_is_gone_after_a_restart_leaves_its_call_unrepeated(
    opened: Opened, new_driver: NewDriver
) -> None:
    call = ToolCall(new_id("sevt"), "bash", {"command": "echo ran"})
    async with opened() as before:
        incarnation = await before.incarnation(S, [])
        await before.execute(S, call, incarnation)
    driver = new_driver()
    for sandbox in await driver.adopt():
        await driver.destroy(sandbox.id)
    async with opened() as after, asyncio.timeout(30):
        assert said(await after.recover(S, call, incarnation)).startswith("interrupted, may have run: ")
        fresh = await use(after, "bash", last=incarnation, command=f"ls; cat {UPLOAD.path}")
    assert "This is a fresh one." in said(fresh)
    assert CSV.decode().rstrip() in said(fresh)


async def test_a_sandbox_destroyed_under_a_call_is_an_outcome_and_the_session_goes_on(
    hands: SandboxHands, new_driver: NewDriver
) -> None:
    incarnation = await hands.incarnation(S, [])
    call = ToolCall(new_id("sevt"), "bash", {"command": "echo 1 > begun; sleep 60"})
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(hands.execute(S, call, incarnation))
        await begun(hands, incarnation)
        driver = new_driver()
        (sandbox,) = await driver.adopt()
        await driver.destroy(sandbox.id)
    assert said(running.result()).startswith("interrupted, may have run: ")
    assert said(await use(hands, "bash", last=incarnation, command="echo on")).endswith("\non")


async def test_a_released_session_leaves_nothing_behind(hands: SandboxHands, new_driver: NewDriver) -> None:
    await use(hands, "bash", command="sleep 1000 >/dev/null 2>&1 &")
    await hands.release(S)
    assert await new_driver().adopt() == []


async def test_what_a_finished_session_left_is_removed_at_the_next_start(
    opened: Opened, new_driver: NewDriver, sessions: Sessions
) -> None:
    async with opened() as before:
        await before.incarnation(S, [])
    sessions.over.add(S)
    async with opened(), asyncio.timeout(30):
        watcher = new_driver()
        while await watcher.adopt():
            pass
