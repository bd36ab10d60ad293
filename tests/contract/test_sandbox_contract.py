"""What every sandbox driver promises, checked on each of them with real sandboxes."""

import asyncio
import base64
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import docker
import pytest
from blockbuster import blockbuster_ctx
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker
from galley_sandbox.errors import CallRefused, FileRefused, SandboxLost
from galley_sandbox.port import (
    JSON,
    Acknowledged,
    Driver,
    Finished,
    Hand,
    Limits,
    MediaBlock,
    MiB,
    Running,
    Sandbox,
    Spec,
    ToolResult,
    Unknown,
)

pytestmark = pytest.mark.anyio

HOME_ID = "home_contract_test"
LIMITS = Limits(
    memory_bytes=192 * MiB, cpus=2, pids=48, disk_bytes=32 * MiB, wall_s=30, output_bytes=2 * MiB, cpu_s=120
)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def is_absent(backend: str) -> bool:
    if backend == "bubblewrap":
        return shutil.which("bwrap") is None
    try:
        with closing(docker.from_env()) as client:
            client.ping()
    except docker.errors.DockerException:
        return True
    return False


@pytest.fixture(
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if is_absent(name):
        required = name in os.environ.get("GALLEY_REQUIRE_BACKENDS", "").split(",")
        (pytest.fail if required else pytest.skip)(f"{name} is not on this machine")
    return name


def make_driver(backend: str, root: Path, *, home_id: str = HOME_ID, idle_exit_s: float = 120) -> Driver:
    if backend == "bubblewrap":
        return Bubblewrap(root, home_id, idle_exit_s=idle_exit_s)
    return Docker(home_id, idle_exit_s=idle_exit_s)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("galley_sandbox"):
        yield


@pytest.fixture
async def driver(backend: str, tmp_path: Path) -> AsyncIterator[Driver]:
    driver = make_driver(backend, tmp_path / "sandboxes", home_id=f"{HOME_ID}_{tmp_path.name}")
    yield driver
    for sandbox in await driver.adopt():
        await driver.destroy(sandbox.id)
    await driver.close()


@pytest.fixture
async def sandbox(driver: Driver) -> AsyncIterator[Sandbox]:
    sandbox = await driver.provision(Spec("sesn_contract", LIMITS))
    yield sandbox
    await driver.destroy(sandbox.id)


@pytest.fixture
async def hand(sandbox: Sandbox) -> AsyncIterator[Hand]:
    async with sandbox.connect() as hand:
        yield hand


_serial = iter(range(10**9))


async def use(hand: Hand, tool: str, input: Mapping[str, JSON], *, shell: str = "main") -> ToolResult:
    call_id = f"sevt_{next(_serial)}"
    async with asyncio.timeout(60):
        result = await hand.call(call_id, tool, input, shell=shell)
        await hand.acknowledge(call_id)
    return result


async def bash(hand: Hand, command: str, *, shell: str = "main", timeout_ms: int = 20_000) -> ToolResult:
    return await use(hand, "bash", {"command": command, "timeout_ms": timeout_ms}, shell=shell)


async def until(hand: Hand, condition: str) -> None:
    """Wait, inside the sandbox, until a shell condition holds."""
    result = await bash(hand, f"until {condition}; do sleep 0.01; done", shell="watch", timeout_ms=10_000)
    assert not result.is_error, result.text


async def accepted(hand: Hand, call_id: str) -> None:
    """Each question is a round trip, so this leaves room for everything else."""
    async with asyncio.timeout(10):
        state = await hand.query(call_id)
        while state == Unknown():
            state = await hand.query(call_id)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


# The shell


async def test_bash_keeps_its_state_between_calls(hand: Hand) -> None:
    await bash(hand, "cd /tmp; export COLOUR=blue; count() { echo one two; }")
    assert (await bash(hand, "pwd; echo $COLOUR; count")).text == "/tmp\nblue\none two"


async def test_bash_joins_both_streams_and_strips_colour(hand: Hand) -> None:
    result = await bash(hand, "echo out; echo err >&2; printf '\\033[31mred\\033[0m\\n\\n\\n'")
    assert (result.text, result.is_error) == ("out\nerr\nred", False)


async def test_a_command_without_output_has_no_content(hand: Hand) -> None:
    assert await bash(hand, "true") == ToolResult(content=(), is_error=False)


async def test_a_failing_command_is_an_error_with_its_output_alone(hand: Hand) -> None:
    result = await bash(hand, "echo before; ls /nowhere-at-all; exit_code() { return 3; }; exit_code")
    assert result.is_error
    assert result.text.startswith("before\n")
    assert "3" not in result.text


async def test_a_command_reads_nothing_from_its_input(hand: Hand) -> None:
    assert (await bash(hand, 'cat; read line; echo "[$line]"')).text == "[]"


async def test_an_unfinished_command_does_not_swallow_the_next(hand: Hand) -> None:
    broken = await bash(hand, "echo 'never closed")
    assert broken.is_error
    assert (await bash(hand, "echo still here")).text == "still here"


async def test_bash_wants_a_command(hand: Hand) -> None:
    result = await use(hand, "bash", {})
    assert (result.text, result.is_error) == ("bash: command is required", True)


async def test_a_timeout_kills_the_shell_until_it_is_restarted(hand: Hand) -> None:
    late = await bash(hand, "echo x; sleep 60", timeout_ms=200)
    assert (late.text, late.is_error) == ("bash: bash command timed out after 0.2s", True)
    after = await bash(hand, "echo no")
    assert (after.text, after.is_error) == ("bash: bash session terminated; restart required", True)
    restarted = await use(hand, "bash", {"restart": True})
    assert (restarted.text, restarted.is_error) == ("bash session restarted", False)
    assert (await bash(hand, "echo yes")).text == "yes"


async def test_restart_forgets_the_old_shell_and_ends_its_jobs(hand: Hand) -> None:
    await bash(hand, "LEFT=over; sleep 1234 & setsid sleep 1234 &")
    await use(hand, "bash", {"restart": True})
    assert (await bash(hand, 'echo "[$LEFT]"; pgrep -c -x sleep || true')).text == "[]\n0"


async def test_exit_ends_the_shell(hand: Hand) -> None:
    result = await bash(hand, "echo bye; exit 0")
    assert (result.text, result.is_error) == ("bye", True)
    assert "restart required" in (await bash(hand, "echo again")).text


async def test_background_jobs_outlive_their_call_and_speak_in_the_next(hand: Hand) -> None:
    await bash(hand, "(until [ -e /tmp/go ]; do sleep 0.01; done; echo from behind; touch /tmp/said) &")
    await until(hand, "touch /tmp/go && [ -e /tmp/said ]")
    assert (await bash(hand, "echo next")).text == "from behind\nnext"


async def test_the_tools_environment_holds_nothing_of_ours(hand: Hand) -> None:
    names = (await bash(hand, "compgen -e")).text.split()
    assert not [name for name in names if name.startswith(("GALLEY", "ANTHROPIC", "PYTHON"))]
    assert (await bash(hand, "echo $TERM; pwd")).text == "dumb\n/workspace"


async def test_a_script_may_use_the_low_descriptors(hand: Hand) -> None:
    assert (await bash(hand, "exec 3>/tmp/three; echo hi >&3; exec 3>&-; cat /tmp/three; exec >/dev/null")).text == "hi"
    assert (await bash(hand, "echo heard")).text == "heard"


async def test_long_output_is_kept_in_a_file_and_shown_as_a_preview(hand: Hand) -> None:
    result = await bash(hand, "seq 1 100000")
    assert not result.is_error
    assert len(result.text) < 30_000
    first, second, *_ = result.text.splitlines()
    assert first == "[output truncated]"
    path = next(word for word in second.replace(";", " ").split() if word.startswith("/"))
    assert result.text.endswith("\n99999\n100000")
    assert (await bash(hand, f"md5sum < {path}")).text == (await bash(hand, "seq 1 100000 | md5sum")).text
    assert (await use(hand, "read", {"file_path": path, "view_range": [99_999, 99_999]})).text == "99999"


async def test_output_up_to_the_limit_is_whole(hand: Hand) -> None:
    assert len((await bash(hand, "head -c 100000 /dev/zero | tr '\\0' x")).text) == 100_000


# The file tools


async def test_write_read_edit_round_trip(hand: Hand) -> None:
    wrote = await use(hand, "write", {"file_path": "deep/er/note.txt", "content": "héllo\nworld\n"})
    assert wrote.text == "wrote 12 bytes to deep/er/note.txt"
    edited = await use(
        hand, "edit", {"file_path": "/workspace/deep/er/note.txt", "old_string": "world", "new_string": "there"}
    )
    assert edited.text == "edited /workspace/deep/er/note.txt (1 replacement(s))"
    assert (await use(hand, "read", {"file_path": "deep/er/note.txt"})).text == "héllo\nthere\n"
    assert (await bash(hand, "cat deep/er/note.txt; stat -c %U/%a deep")).text.endswith("/755")


async def test_read_takes_a_range_of_lines(hand: Hand) -> None:
    await bash(hand, "seq 1 9 > nine; seq 1 100000 > many")
    assert (await use(hand, "read", {"file_path": "nine", "view_range": [3, 5]})).text == "3\n4\n5"
    assert (await use(hand, "read", {"file_path": "many", "view_range": [3, 5]})).text == "3\n4\n5"
    assert (await use(hand, "read", {"file_path": "many", "view_range": [99_999, 0]})).text == "99999\n100000\n"


@pytest.mark.parametrize(
    ("tool", "input", "text"),
    [
        ("read", {"file_path": "absent"}, "read: absent: no such file or directory"),
        ("read", {"file_path": "/workspace"}, "read: /workspace: not a regular file"),
        (
            "read",
            {"file_path": "/etc/passwd"},
            "read: path '/etc/passwd' is outside the session's working directory and its other permitted directories",
        ),
        ("read", {}, "read: file_path is required"),
        ("read", {"file_path": 7}, "read: file_path must be a string"),
        ("read", {"file_path": "f", "view_range": [1]}, "read: view_range must be [start_line, end_line]"),
        (
            "write",
            {"file_path": "/mnt/session/uploads/x", "content": ""},
            "write: /mnt/session/uploads/x is inside read-only directory /mnt/session/uploads",
        ),
        (
            "edit",
            {"file_path": "f", "old_string": "zz", "new_string": ""},
            "edit: old_string not found in f",
        ),
        (
            "edit",
            {"file_path": "f", "old_string": "a", "new_string": ""},
            "edit: old_string appears 2 times in f (must be unique)",
        ),
        ("glob", {"pattern": "../*"}, "glob: '..' is not permitted in the pattern"),
        ("glob", {"pattern": "/etc/*"}, None),
        ("grep", {"pattern": "(", "path": "f"}, None),
    ],
)
async def test_file_tools_fail_in_the_official_words(
    hand: Hand, tool: str, input: Mapping[str, JSON], text: str | None
) -> None:
    await use(hand, "write", {"file_path": "f", "content": "a b a"})
    result = await use(hand, tool, input)
    assert result.is_error
    assert text is None or result.text == text


async def test_a_large_file_is_refused_and_points_to_ranges(hand: Hand) -> None:
    await bash(hand, "head -c 262145 /dev/zero | tr '\\0' y > large")
    assert "exceeds 262144-byte limit. Use the view_range" in (await use(hand, "read", {"file_path": "large"})).text
    ranged = await use(hand, "read", {"file_path": "large", "view_range": [1, 1]})
    assert ranged.text.startswith("read: line 1 of large alone exceeds")
    edited = await use(hand, "edit", {"file_path": "large", "old_string": "y", "new_string": "z"})
    assert "cannot modify a file this large" in edited.text


async def test_a_symlink_out_of_the_workspace_is_not_followed(hand: Hand) -> None:
    await bash(hand, "ln -s /etc/hostname out; ln -s loop loop; ln -s nowhere/new dangling")
    assert "outside the session's working directory" in (await use(hand, "read", {"file_path": "out"})).text
    assert "too many levels of symbolic links" in (await use(hand, "read", {"file_path": "loop"})).text
    await use(hand, "write", {"file_path": "dangling", "content": "through"})
    assert (await bash(hand, "cat nowhere/new")).text == "through"


async def test_an_image_comes_back_as_a_block(hand: Hand) -> None:
    await hand.put_file("/workspace/dot.png", pieces(PNG))
    result = await use(hand, "read", {"file_path": "dot.png"})
    (block,) = result.content
    assert isinstance(block, MediaBlock)
    assert (block.kind, block.media_type, base64.b64decode(block.data)) == ("image", "image/png", PNG)


async def test_a_binary_file_is_not_text(hand: Hand) -> None:
    await hand.put_file("/workspace/blob", pieces(b"\xff\xfe\x00"))
    result = await use(hand, "read", {"file_path": "blob"})
    assert result.text.startswith("read: blob: not valid UTF-8 text")


async def test_glob_lists_newest_first(hand: Hand) -> None:
    await bash(hand, "mkdir -p a/b; touch -d '2020-01-01' a/old.py; touch -d '2024-01-01' a/b/new.py; touch a/x.txt")
    assert (await use(hand, "glob", {"pattern": "**/*.py"})).text == "/workspace/a/b/new.py\n/workspace/a/old.py"
    assert (await use(hand, "glob", {"pattern": "*.py", "path": "a"})).text == "/workspace/a/old.py"
    assert (await use(hand, "glob", {"pattern": "*.rs"})).text == "no matches"


async def test_grep_names_file_line_and_text(hand: Hand) -> None:
    await bash(hand, "mkdir -p src; printf 'one\\ntwo needle\\n' > src/f.txt")
    assert (await use(hand, "grep", {"pattern": "need.e"})).text.strip() == "/workspace/src/f.txt:2:two needle"
    assert (await use(hand, "grep", {"pattern": "absent"})).text == "no matches"


async def test_a_fifo_blocks_nobody(hand: Hand) -> None:
    await bash(hand, "mkfifo pipe")
    assert (await use(hand, "read", {"file_path": "pipe"})).text == "read: pipe: not a regular file"
    with pytest.raises(FileRefused, match="not a regular file"):
        [piece async for piece in hand.get_file("/workspace/pipe")]


# Files in and out


async def test_files_go_in_and_out_whole(hand: Hand) -> None:
    data = os.urandom(3 * MiB)
    await hand.put_file("/workspace/in/data.bin", pieces(data[:1000], data[1000:]), mode=0o640)
    assert (await bash(hand, "stat -c '%s %a' in/data.bin")).text == f"{len(data)} 640"
    assert b"".join([piece async for piece in hand.get_file("/workspace/in/data.bin")]) == data


async def test_an_upload_is_the_hands_and_tools_only_read_it(hand: Hand) -> None:
    await hand.put_file("/mnt/session/uploads/sub/table.csv", pieces(b"a,b\n"))
    assert (await use(hand, "read", {"file_path": "/mnt/session/uploads/sub/table.csv"})).text == "a,b\n"
    result = await bash(
        hand, "cd /mnt/session/uploads/sub; echo x >> table.csv; rm -f table.csv; touch y; cat table.csv"
    )
    assert result.text.endswith("a,b")


async def test_outputs_can_be_written_and_fetched(hand: Hand) -> None:
    await bash(hand, "echo report > /mnt/session/outputs/report.md")
    assert b"".join([piece async for piece in hand.get_file("/mnt/session/outputs/report.md")]) == b"report\n"


async def test_a_file_that_cannot_be_moved_is_refused_with_the_reason(hand: Hand) -> None:
    with pytest.raises(FileRefused, match="no such file or directory"):
        [piece async for piece in hand.get_file("/workspace/absent")]
    with pytest.raises(FileRefused, match="is a directory"):
        await hand.put_file("/workspace", pieces(b"x"))
    with pytest.raises(FileRefused, match="absolute path"):
        await hand.put_file("relative", pieces(b"x"))
    assert (await bash(hand, "echo fine")).text == "fine"


async def test_a_file_too_large_for_the_disk_leaves_nothing(hand: Hand) -> None:
    with pytest.raises(FileRefused, match="no space left on device"):
        await hand.put_file("/workspace/huge", pieces(*[bytes(MiB)] * 40))
    assert (await bash(hand, "ls -A")).text.replace("lost+found", "").strip() == ""


async def test_a_slow_reader_of_a_file_holds_up_no_call(hand: Hand) -> None:
    await hand.put_file("/workspace/big", pieces(bytes(4 * MiB)))
    stalled = hand.get_file("/workspace/big")
    size = len(await anext(stalled))
    assert (await bash(hand, "echo quick")).text == "quick"
    async for piece in stalled:
        size += len(piece)
    assert size == 4 * MiB


# No effect twice


COUNT = (
    "echo x >> /workspace/count; touch /workspace/started; until [ -e /workspace/go ]; do sleep 0.01; done; echo done"
)


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
        sys.executable, "-c", CLIENT, backend, str(tmp_path / "sandboxes"), f"{HOME_ID}_{tmp_path.name}", COUNT
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


async def outcome(hand: Hand, call_id: str, command: str) -> ToolResult | SandboxLost:
    try:
        return await hand.call(call_id, "bash", {"command": command})
    except SandboxLost as e:
        return e


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


async def hand_process(backend: str, sandbox: Sandbox, root: Path) -> int:
    """The host's number of the hand's process."""
    if backend == "bubblewrap":
        state = json.loads((root / sandbox.id / "state.json").read_text())
        return int(state["process"]["pid"])
    client = await asyncio.to_thread(docker.from_env)
    try:
        details = await asyncio.to_thread(client.api.inspect_container, sandbox.id)
    finally:
        client.close()
    return int(details["State"]["Pid"])


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


# Cancelling, and side by side


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


# Limits


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


# Isolation


async def test_there_is_no_network_but_loopback(hand: Hand) -> None:
    interfaces = (await bash(hand, "ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1")).text
    assert interfaces.split() == ["lo"]
    script = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    assert "Network is unreachable" in (await bash(hand, f'python3 -c "{script}"')).text
    serve = "import socket; a = socket.create_server(('127.0.0.1', 0)); socket.create_connection(a.getsockname())"
    assert not (await bash(hand, f'python3 -c "{serve}"')).is_error


ATTACKS = """
import ctypes, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, action):
    try:
        action()
    except OSError:
        return
    print("got through:", name)

def ptrace():
    if libc.ptrace(16, 1, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def stolen_fd():
    number = libc.syscall(434, 1, 0)
    for fd in range(64):
        if libc.syscall(438, number, fd, 0) >= 0:
            return
    raise OSError

for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1, signal.SIGSEGV):
    try:
        os.kill(1, number)
    except OSError:
        pass
attempt("ptrace", ptrace)
attempt("environ", lambda: open("/proc/1/environ").read())
attempt("memory", lambda: open("/proc/1/mem", "rb+").read(1))
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("descriptors", lambda: os.listdir("/proc/1/fd"))
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("stolen descriptor", stolen_fd)
attempt("limits", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)))
attempt("memory score", lambda: open("/proc/1/oom_score_adj", "w").write("1000"))
for name in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/opt/galley/galley_sandbox/start_hand.py"):
    attempt(name, lambda: open(name, "r+"))
attempt("become root", lambda: os.setuid(0))

def sockets(folder):
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(parent, name)

def knock(path):
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)

for folder in ("/run", "/tmp", "/var", "/mnt", "/opt", "/dev", "/home"):
    for path in sockets(folder):
        attempt("socket " + path, lambda: knock(path))
for line in open("/proc/net/unix").read().splitlines()[1:]:
    words = line.split()
    if len(words) == 8:
        attempt("socket " + words[7], lambda: knock(words[7].replace("@", chr(0), 1)))
print("over")
"""


async def test_tools_cannot_touch_the_hand(hand: Hand) -> None:
    await use(hand, "write", {"file_path": "attack.py", "content": ATTACKS})
    assert (await bash(hand, "python3 attack.py")).text == "over"
    assert (await bash(hand, "echo alive")).text == "alive"


async def test_a_forked_worker_is_as_untouchable_as_the_hand(hand: Hand) -> None:
    spy = "for p in /proc/[0-9]*; do [ $(cut -d' ' -f4 $p/stat) = 1 ] && cat $p/environ $p/maps; done 2>/dev/null"
    async with asyncio.TaskGroup() as tasks:
        await bash(hand, "mkdir -p many; cd many; for i in $(seq 300); do echo $i > $i; done; cd ..")
        tasks.create_task(use(hand, "grep", {"pattern": "(a|b|c)+x"}))
        spied = tasks.create_task(bash(hand, f"for i in 1 2 3 4 5; do {spy}; done | head -c 1"))
    assert spied.result().text == ""


async def test_the_host_is_out_of_sight(hand: Hand, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    assert (await bash(hand, f"cat {tmp_path}/secret")).is_error
    assert (await bash(hand, f"kill -0 {os.getpid()}")).is_error
    assert "docker" not in (await bash(hand, "ls /root /home /var/lib /boot")).text
    assert (await bash(hand, "ls /dev | grep -E '^(sd|vd|loop|mem|kmsg)'")).text == ""


async def test_tools_have_no_privileges(hand: Hand) -> None:
    status = (await bash(hand, "grep -E '^(CapEff|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status; id -u")).text.split()
    assert status[1] == status[3] == "0000000000000000"
    assert (status[5], status[7]) == ("1", "2")
    assert status[8] != "0"
    assert (await bash(hand, "unshare -Ur true")).is_error
    assert (await bash(hand, "mount -t tmpfs none /tmp")).is_error


# Finding and removing


async def test_a_new_driver_adopts_what_the_old_one_left(
    backend: str, driver: Driver, sandbox: Sandbox, tmp_path: Path
) -> None:
    async with sandbox.connect() as hand:
        await bash(hand, "echo kept > file")
    later = make_driver(backend, tmp_path / "sandboxes", home_id=f"{HOME_ID}_{tmp_path.name}")
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
    driver = make_driver(backend, tmp_path / "sandboxes", home_id=f"{HOME_ID}_{tmp_path.name}", idle_exit_s=0.5)
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
