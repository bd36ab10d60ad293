"""`galley mcp` as a process: real clients over stdio, servers that are missing, killed or broken."""

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest
from galley_server.home import socket_to_bind
from galley_server.mcp.lines import MAX_CLIENT_LINE
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from tests.integration.test_mcp_socket import ENVELOPE, INITIALIZE, Wire, call

pytestmark = pytest.mark.anyio

PROGRAM = Path(__file__).with_name("mcp_server_program.py")
SHIM = """
import os, sys
from pathlib import Path
from galley_server.mcp.launch import Launcher
from galley_server.mcp.local import LocalShim
home = Path(os.environ["GALLEY_HOME"])
LocalShim(Launcher(home, os.environ, {command!r}, timeout_s={timeout_s}, ended_grace_s=0.5)).run()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose detached servers end with the test."""
    yield tmp_path
    for pid in starts(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def starts(home: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(pid) for pid in (home / "starts").read_text().split()]
    return []


def shim(home: Path, command: list[str] | None = None, timeout_s: float = 20.0) -> list[str]:
    command = command or [sys.executable, str(PROGRAM)]
    return [sys.executable, "-c", textwrap.dedent(SHIM).format(command=command, timeout_s=timeout_s)]


def environ(home: Path) -> dict[str, str]:
    root = str(PROGRAM.parents[2])
    return {**os.environ, "GALLEY_HOME": str(home), "PYTHONPATH": root}


class ShimWire(Wire):
    process: asyncio.subprocess.Process


@asynccontextmanager
async def over_stdio(
    home: Path,
    arguments: list[str] | None = None,
    limit: int = 64 * 1024 * 1024,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[ShimWire]:
    process = await asyncio.create_subprocess_exec(
        *(arguments or shim(home)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environ(home), **extra},
        limit=limit,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    wire = ShimWire(process.stdout, process.stdin)
    wire.process = process
    try:
        async with asyncio.timeout(30):
            yield wire
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # asyncio leaves the pipes of a process that was killed to the garbage collector
        process._transport.close()  # type: ignore[attr-defined]


async def until(condition: Callable[[], bool]) -> None:
    """What another process does to a file has no event to wait for. The caller bounds the time."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def kill_server(home: Path) -> None:
    """As the kernel would: no goodbye, and gone before this returns."""
    pid = starts(home)[-1]
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(gone, pid)


def gone(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        deadline = time.monotonic() + 5
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            with suppress(psutil.TimeoutExpired):
                process.wait(0.01)


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_sdks_client_works_in_every_mode_and_finds_a_server_started_for_it(home: Path, mode: str) -> None:
    parameters = StdioServerParameters(command=shim(home)[0], args=shim(home)[1:], env=environ(home))
    async with asyncio.timeout(30), Client(stdio_client(parameters), mode=mode) as client:
        result = await client.call_tool("echo", {"text": "hi"})
    assert result.structured_content == {"result": "hi"}
    assert len(starts(home)) == 1


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_a_client_goes_on_after_its_server_was_killed(home: Path, mode: str) -> None:
    parameters = StdioServerParameters(command=shim(home)[0], args=shim(home)[1:], env=environ(home))
    async with asyncio.timeout(30), Client(stdio_client(parameters), mode=mode) as client:
        before = await client.call_tool("pid", {})
        await kill_server(home)
        after = await client.call_tool("pid", {})
    assert before.structured_content != after.structured_content
    assert len(starts(home)) == 2


async def test_a_call_under_way_when_the_server_is_killed_is_an_error_to_act_on(home: Path) -> None:
    async with over_stdio(home) as wire:
        await wire.send(call(1, "count"))
        await wire.ask(call(2, "echo", text="count has started"))
        await kill_server(home)
        error = await wire.receive()
        after = await wire.ask(call(3, "echo", text="after"))
    assert error["id"] == 1
    assert "idempotency_key" in error["error"]["message"]
    assert after["id"] == 3
    assert (home / "effects").read_text() == "x\n"


async def test_a_server_that_crashed_is_started_again_without_being_asked(home: Path) -> None:
    async with over_stdio(home) as wire:
        await wire.ask(call(1, "echo", text="up"))
        await kill_server(home)
        await until(lambda: len(starts(home)) == 2)


async def test_a_server_that_was_shut_down_is_started_again_only_when_needed(home: Path) -> None:
    async with over_stdio(home) as wire:
        params = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
        await wire.ask({"id": "l", "method": "subscriptions/listen", "params": params})
        (home / "run" / "galley.sock").unlink()  # what a shutdown does
        await kill_server(home)
        await wire.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
        await wire.ask(b"x" * (MAX_CLIENT_LINE + 1) + b"\n")  # answered by the shim itself: it has seen all the rest
        assert len(starts(home)) == 1
        await wire.ask(call(2, "echo", text="needed"))
        assert len(starts(home)) == 2
        await wire.send(call(3, "announce"))
        both = [await wire.receive(), await wire.receive()]
        assert "notifications/tools/list_changed" in {message.get("method") for message in both}


async def test_two_shims_that_begin_at_once_end_up_on_one_server(home: Path) -> None:
    async with over_stdio(home) as one, over_stdio(home) as two, over_stdio(home) as three:
        answers = await asyncio.gather(*(wire.ask(call(1, "pid")) for wire in (one, two, three)))
    assert len({answer["result"]["structuredContent"]["result"] for answer in answers}) == 1
    assert len(starts(home)) == 1


async def test_the_server_outlives_the_shim_that_started_it_in_a_session_of_its_own(home: Path) -> None:
    async with over_stdio(home) as wire:
        await wire.ask(call(1, "pid"))
        wire.writer.close()
        assert await wire.process.wait() == 0
    (pid,) = starts(home)
    assert os.getsid(pid) == pid
    assert stat.S_IMODE((home / "server.log").stat().st_mode) == 0o600
    async with over_stdio(home) as wire:
        assert (await wire.ask(call(1, "pid")))["result"]["structuredContent"] == {"result": pid}


@pytest.mark.parametrize("command", [None, ["sleep", "60"]])
async def test_the_end_of_stdin_ends_the_shim_at_once(home: Path, command: list[str] | None) -> None:
    async with over_stdio(home, shim(home, command)) as wire:
        if command is None:
            await wire.ask(call(1, "echo", text="up"))
            await wire.send(call(2, "count"))
        else:
            await wire.send(call(1, "echo", text="never read"))
        before = time.monotonic()
        wire.writer.close()
        assert await wire.process.wait() == 0
        assert time.monotonic() - before < 0.5


async def test_a_client_that_stopped_reading_can_still_hang_up(home: Path) -> None:
    async with over_stdio(home, limit=1) as wire:  # asyncio reads no further than twice this
        for number in range(20):
            await wire.send(call(number, "repeat", text="x" * 1024, times=1024))
        wire.writer.close()
        assert await wire.process.wait() == 0


async def test_a_server_that_cannot_start_is_an_error_with_its_log(home: Path) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('the store is corrupt')"]
    async with over_stdio(home, shim(home, broken)) as wire:
        error = await wire.ask(call(1, "echo", text="hi"))
    assert error["id"] == 1
    assert "status 1" in error["error"]["message"]
    assert "the store is corrupt" in error["error"]["message"]


async def test_a_server_that_never_answers_is_waited_for_only_so_long(home: Path) -> None:
    async with over_stdio(home, shim(home, ["sleep", "3"], timeout_s=0.5)) as wire:
        error = await wire.ask(call(1, "echo", text="hi"))
    assert "within 0 s" in error["error"]["message"] or "within 1 s" in error["error"]["message"]


async def test_a_server_that_hangs_up_on_everybody_is_an_error_not_a_loop(home: Path) -> None:
    (home / "run").mkdir(mode=0o700)
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async with await asyncio.start_unix_server(hang_up, home / "run" / "galley.sock"), over_stdio(home) as wire:
        error = await wire.ask({"id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}})
    assert "closes them at once" in error["error"]["message"]
    assert connections < 10


async def test_a_message_over_the_limit_is_an_error_and_the_rest_goes_on(home: Path) -> None:
    async with over_stdio(home) as wire:
        await wire.ask(call(1, "echo", text="up"))
        error = await wire.ask(call("big", "echo", text="x" * MAX_CLIENT_LINE))
        after = await wire.ask(call(2, "echo", text="x" * (MAX_CLIENT_LINE // 2)))
    assert error["id"] == "big"
    assert "longer than" in error["error"]["message"]
    assert len(after["result"]["structuredContent"]["result"]) == MAX_CLIENT_LINE // 2


async def test_nonsense_is_answered(home: Path) -> None:
    async with over_stdio(home) as wire:
        assert (await wire.ask(b"nonsense\n"))["error"]["code"] == -32700


async def test_discover_then_initialize_works_through_the_shim(home: Path) -> None:
    async with over_stdio(home) as wire:
        await wire.ask({"id": 1, "method": "server/discover", "params": {"_meta": ENVELOPE}})
        await wire.ask({"id": 2, "method": "initialize", "params": INITIALIZE})
        await wire.send({"method": "notifications/initialized"})
        assert "result" in await wire.ask(call(3, "echo", modern=False, text="hi"))


async def test_an_error_of_the_sdk_reaches_the_sdks_client(home: Path) -> None:
    parameters = StdioServerParameters(command=shim(home)[0], args=shim(home)[1:], env=environ(home))
    async with asyncio.timeout(30), Client(stdio_client(parameters), mode="legacy") as client:

        async def kill_during_call() -> None:
            await until((home / "effects").exists)
            await kill_server(home)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_during_call())
            with pytest.raises(MCPError, match="may or may not have taken effect"):
                await client.call_tool("count", {})
        assert not (await client.call_tool("echo", {"text": "after"})).is_error


async def test_the_shim_imports_nothing_heavy() -> None:
    code = "import sys, galley_server.mcp.shim, galley_server.mcp.local, galley_server.mcp.remote; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    heavy = {"mcp", "anthropic", "pydantic", "starlette", "anyio", "asyncio", "httpx2", "uvicorn"}
    assert not heavy & set(output.decode().split())


def test_the_shim_is_also_what_the_command_runs(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    run = subprocess.run(
        [sys.executable, "-m", "galley_server", "mcp"],
        input="",
        capture_output=True,
        text=True,
        env={**os.environ, "GALLEY_HOME": str(home)},
        timeout=20,
        check=False,
    )
    assert run.returncode == 2
    assert str(home) in run.stderr
    assert json.dumps(run.stdout) == '""'


async def test_a_home_with_a_long_path_works_all_the_same(home: Path) -> None:
    long = home / ("long" * 30)
    long.mkdir()
    async with over_stdio(long) as wire, over_stdio(long) as other:
        answers = [await wire.ask(call(1, "pid")), await other.ask(call(1, "pid"))]
        await kill_server(long)
        after = await wire.ask(call(2, "pid"))
    pids = [answer["result"]["structuredContent"]["result"] for answer in (*answers, after)]
    assert pids[0] == pids[1] != pids[2]
    os.kill(pids[2], signal.SIGKILL)
    shutil.rmtree(socket_to_bind(long).parent)
