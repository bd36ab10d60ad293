"""The file tools say, to the letter, what the official toolset says about the same files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anthropic.lib.tools import ToolError as OfficialError
from anthropic.lib.tools.agent_toolset import AgentToolContext, beta_agent_toolset_20260401
from galley_sandbox.hand import file_tools
from galley_sandbox.hand.paths import Places, ToolError

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.fixture(autouse=True)
def without_ripgrep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have a search of their own for when there is none; with it, both only pass on what it says."""
    monkeypatch.setenv("PATH", "/nowhere")


def fill(work: Path) -> None:
    (work / "a" / "b").mkdir(parents=True)
    (work / "text").write_text("one\ntwo\nthree\n")
    (work / "no-newline").write_text("x\ny")
    (work / "crlf").write_bytes(b"a\r\nb\r\n")
    (work / "empty").write_bytes(b"")
    (work / "latin").write_bytes(b"caf\xe9\n")
    (work / "large").write_text("".join(f"line {n}\n" for n in range(40_000)))
    (work / "wide").write_text("w" * 300_000 + "\nnext\n")
    (work / "dot.png").write_bytes(PNG)
    (work / "a" / "doc.PDF").write_bytes(b"%PDF-1.4")
    (work / "huge.gif").write_bytes(bytes(4 * 1024 * 1024))
    (work / "a" / "b" / "deep.py").write_text("import os\nneedle = 1\n")
    (work / "a" / "top.py").write_text("needle\n" * 3)
    (work / ".git").mkdir()
    (work / ".git" / "config").write_text("needle")
    (work / "binary").write_bytes(b"needle\0")
    (work / "long").write_text("needle" + "x" * 3000 + "\n")
    (work / "many").write_text("needle and more text to fill the line up with\n" * 4000)
    (work / "link").symlink_to("text")
    (work / "out").symlink_to("/etc/hostname")
    (work / "loop").symlink_to("loop")
    (work / "dangling").symlink_to("a/made/later")
    for number, path in enumerate(sorted(path for path in work.rglob("*") if path.is_file() and not path.is_symlink())):
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))


CASES: list[tuple[str, dict[str, Any]]] = [
    *(("read", {"file_path": name}) for name in ("text", "no-newline", "crlf", "empty", "latin", "large", "link")),
    *(("read", {"file_path": name}) for name in ("dot.png", "a/doc.PDF", "huge.gif", "a", "absent", "out", "loop")),
    *(("read", {"file_path": name}) for name in ("text/below", "/etc/passwd", "../x", ".", "a/../text")),
    *(("read", {"file_path": "text", "view_range": pair}) for pair in ([1, 1], [2, 3], [2, 0], [3, 9], [0, 1], [5, 2])),
    *(("read", {"file_path": "large", "view_range": pair}) for pair in ([1, 2], [39_999, 0], [5, 4], [1, 0], [0, 3])),
    *(("read", {"file_path": "wide", "view_range": pair}) for pair in ([1, 1], [2, 2], [1, 2], [2, 0])),
    ("read", {"file_path": "text", "view_range": [1]}),
    ("read", {"file_path": "dot.png", "view_range": [1, 2]}),
    ("write", {"file_path": "new/folder/file", "content": "héllo\r\n"}),
    ("write", {"file_path": "text", "content": ""}),
    ("write", {"file_path": "a", "content": "x"}),
    ("write", {"file_path": "text/below", "content": "x"}),
    ("write", {"file_path": "dangling", "content": "x"}),
    ("write", {"file_path": "out", "content": "x"}),
    ("edit", {"file_path": "text", "old_string": "two", "new_string": "2"}),
    ("edit", {"file_path": "text", "old_string": "t", "new_string": "T"}),
    ("edit", {"file_path": "text", "old_string": "t", "new_string": "T", "replace_all": True}),
    ("edit", {"file_path": "crlf", "old_string": "\r\nb", "new_string": "\n"}),
    ("edit", {"file_path": "text", "old_string": "absent", "new_string": "x"}),
    ("edit", {"file_path": "text", "old_string": "", "new_string": "x"}),
    ("edit", {"file_path": "large", "old_string": "x", "new_string": "y"}),
    ("edit", {"file_path": "latin", "old_string": "x", "new_string": "y"}),
    ("edit", {"file_path": "a", "old_string": "x", "new_string": "y"}),
    ("edit", {"file_path": "absent", "old_string": "x", "new_string": "y"}),
    *(("glob", {"pattern": pattern}) for pattern in ("*", "**/*.py", "*.rs", "../*", "/etc/*", "a/../*", "", "**")),
    *(("glob", {"pattern": "*.py", "path": path}) for path in ("a", "absent", "/etc", "text")),
    *(("grep", {"pattern": pattern}) for pattern in ("needle$", "^import", "(", "nowhere-to-be-found")),
    *(("grep", {"pattern": "needle", "path": path}) for path in ("a", "a/top.py", "binary", "long", "many", "absent")),
    ("grep", {"pattern": "x", "path": "/etc"}),
]


async def official(work: Path, tool: str, given: dict[str, Any]) -> tuple[object, bool]:
    tools = {made.name: made for made in beta_agent_toolset_20260401(AgentToolContext(workdir=work))}
    try:
        return await tools[tool].call(given), False
    except OfficialError as e:
        return str(e), True


def ours(work: Path, tool: str, given: dict[str, Any]) -> tuple[object, bool]:
    try:
        return file_tools.run(tool, Places(str(work), (), ()), given), False
    except ToolError as e:
        return str(e), True


def tree(work: Path) -> dict[str, bytes]:
    return {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}


def same_words(text: object) -> object:
    """We always have further permitted directories, which changes the official wording of a refusal."""
    if not isinstance(text, str):
        return text
    return text.replace(" and its other permitted directories", "")


@pytest.mark.parametrize(("tool", "given"), CASES, ids=lambda value: str(value)[:60])
async def test_it_is_the_same_to_the_letter(tmp_path: Path, tool: str, given: dict[str, Any]) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    kept.mkdir()
    results: list[tuple[object, bool, dict[str, bytes]]] = []
    run: list[Callable[[], Any]] = [lambda: official(work, tool, given), lambda: ours(work, tool, given)]
    for step in run:
        work.mkdir()
        fill(work)
        answer = step()
        content, failed = await answer if hasattr(answer, "__await__") else answer
        results.append((same_words(content), failed, tree(work)))
        work.rename(kept / str(len(results)))
    assert results[0] == results[1]
