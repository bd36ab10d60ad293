"""What every sandbox promises of its tools: the official ones, in a place of their own."""

import base64
import os
from collections.abc import Mapping

import pytest
from galley_sandbox.errors import FileRefused
from galley_sandbox.port import JSON, Hand, MediaBlock, MiB, ToolResult

from tests.contract.sandbox_kit import bash, pieces, until, use

pytestmark = pytest.mark.anyio

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


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
