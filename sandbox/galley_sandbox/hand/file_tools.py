"""The file tools read, write, edit, glob and grep, to the letter of the official toolset's outputs and limits."""

from __future__ import annotations

import base64
import os
import re
import shutil
import stat
import subprocess
import sys
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from galley_sandbox.hand.paths import Places, ToolError, canonical, reason, refuse_read_only, resolve, within

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Content = str | list[dict[str, Any]]

MAX_FILE = 256 * 1024
MAX_IMAGE_BASE64 = 5 * 1024 * 1024
MAX_PDF = 20 * 1024 * 1024
MAX_GREP = 100 * 1024
MAX_GREP_LINE = 2000
GREP_CPU_S = 30
MAX_GLOB = 200
MAX_WALK = 50_000
_MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".pdf": "application/pdf",
}
_PIECE = 64 * 1024


def run(tool: str, places: Places, given: dict[str, Any]) -> Content:
    """Run one file tool on checked input. Raises ToolError."""
    if tool == "read":
        return read(places, given["file_path"], given.get("view_range"))
    if tool == "write":
        return write(places, given["file_path"], given["content"])
    if tool == "edit":
        replace_all = bool(given.get("replace_all"))
        return edit(places, given["file_path"], given["old_string"], given["new_string"], replace_all)
    if tool == "glob":
        return glob(places, given["pattern"], given.get("path"))
    return grep(places, given["pattern"], given.get("path"))


def _failure(op: str, path: str, error: OSError) -> ToolError:
    return ToolError(f"{op}: {path}: {reason(error)}")


def _regular(op: str, target: str, path: str) -> os.stat_result:
    # Looked at before it is opened: opening a FIFO would wait for ever, and a huge file must not be loaded.
    state = os.stat(target)
    if not stat.S_ISREG(state.st_mode):
        raise ToolError(f"{op}: {path}: not a regular file")
    return state


def _load(target: str) -> bytes:
    with open(target, "rb") as file:
        return file.read()


def _store(target: str, text: str) -> None:
    with open(target, "wb") as file:
        file.write(text.encode("utf-8"))


def read(places: Places, file_path: str, view_range: list[int] | None) -> Content:
    target = resolve(places, file_path, op="read")
    if view_range and len(view_range) != 2:
        raise ToolError("read: view_range must be [start_line, end_line]")
    try:
        size = _regular("read", target, file_path).st_size
        media_type = _MEDIA.get(os.path.splitext(target)[1].lower())
        if media_type is not None:
            if view_range:
                raise ToolError("read: view_range is not supported for image/PDF files")
            return [_media_block(target, file_path, size, media_type)]
        if size > MAX_FILE:
            if not view_range:
                raise ToolError(
                    f"read: {file_path} is {size} bytes, exceeds {MAX_FILE}-byte limit. "
                    "Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500]."
                )
            return _read_range(target, file_path, view_range[0], view_range[1])
        text = _load(target).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ToolError(
            f"read: {file_path}: not valid UTF-8 text (binary files are only supported for image/PDF extensions)"
        ) from e
    except OSError as e:
        raise _failure("read", file_path, e) from e
    if not view_range:
        return text
    first, last = view_range
    lines = text.split("\n")
    return "\n".join(lines[max(0, first - 1) : last if last > 0 else len(lines)])


def _media_block(target: str, file_path: str, size: int, media_type: str) -> dict[str, Any]:
    limit = MAX_PDF if media_type == "application/pdf" else MAX_IMAGE_BASE64 // 4 * 3
    if size > limit:
        raise ToolError(f"read: {file_path} is {size} bytes, exceeds {limit}-byte limit for image/PDF files.")
    data = base64.standard_b64encode(_load(target)).decode("ascii")
    kind = "document" if media_type == "application/pdf" else "image"
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}


def _read_range(target: str, file_path: str, first: int, last: int) -> str:
    """Lines first..last of a file too large to load, without loading it."""
    start = max(0, first - 1)
    end = last if last > 0 else sys.maxsize
    if end <= start:
        return ""
    taken = bytearray()
    line = 0
    with open(target, "rb") as file:
        while line < end:
            # Bounded per call, so that one endless line cannot be held either.
            piece = file.readline(_PIECE)
            if not piece:
                break
            ended = piece.endswith(b"\n")
            if line >= start:
                taken += piece[:-1] if ended and line + 1 >= end else piece
                if len(taken) > MAX_FILE:
                    raise ToolError(_range_too_large(file_path, first, last, start, end))
            if ended:
                line += 1
    return taken.decode("utf-8")


def _range_too_large(file_path: str, first: int, last: int, start: int, end: int) -> str:
    if end - start == 1:
        return (
            f"read: line {start + 1} of {file_path} alone exceeds {MAX_FILE}-byte limit. "
            "The read tool cannot return part of a line, so view_range cannot narrow this further."
        )
    return (
        f"read: view_range [{first}, {last}] of {file_path} exceeds {MAX_FILE}-byte limit. "
        "Narrow the view_range to read a smaller portion."
    )


def write(places: Places, file_path: str, content: str) -> str:
    target = resolve(places, file_path, op="write")
    refuse_read_only(places, target, op="write", path=file_path)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _store(target, content)
    except OSError as e:
        raise _failure("write", file_path, e) from e
    return f"wrote {len(content)} bytes to {file_path}"


def edit(places: Places, file_path: str, old: str, new: str, replace_all: bool) -> str:
    target = resolve(places, file_path, op="edit")
    refuse_read_only(places, target, op="edit", path=file_path)
    try:
        size = _regular("edit", target, file_path).st_size
        if size > MAX_FILE:
            raise ToolError(
                f"edit: {file_path} is {size} bytes, exceeds {MAX_FILE}-byte limit. "
                "The edit tool loads the whole file and cannot modify a file this large."
            )
        text = _load(target).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ToolError(f"edit: {file_path}: not valid UTF-8 text (cannot edit binary files)") from e
    except OSError as e:
        raise _failure("edit", file_path, e) from e
    count = text.count(old)
    if count == 0:
        raise ToolError(f"edit: old_string not found in {file_path}")
    if not replace_all and count > 1:
        raise ToolError(f"edit: old_string appears {count} times in {file_path} (must be unique)")
    try:
        _store(target, text.replace(old, new) if replace_all else text.replace(old, new, 1))
    except OSError as e:
        raise _failure("edit", file_path, e) from e
    return f"edited {file_path} ({count if replace_all else 1} replacement(s))"


def glob(places: Places, pattern: str, path: str | None) -> str:
    if os.path.isabs(pattern):
        raise ToolError("glob: absolute pattern not permitted; pass a relative pattern (and optionally path)")
    if ".." in PurePosixPath(pattern).parts:
        raise ToolError("glob: '..' is not permitted in the pattern")
    root = resolve(places, path, op="glob") if path else canonical(places.workspace)
    try:
        matches = [str(match) for match in islice(Path(root).glob(pattern), MAX_WALK)]
    except (ValueError, OSError) as e:
        raise ToolError(f"glob: {e}") from e
    matches = [match for match in matches if _stays_within(match, root)]
    if not matches:
        return "no matches"
    matches.sort(key=_changed_at, reverse=True)
    return "\n".join(matches[:MAX_GLOB])


def _stays_within(match: str, root: str) -> bool:
    try:
        return within(canonical(match), root)
    except OSError:
        return False


def _changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def grep(places: Places, pattern: str, path: str | None) -> str:
    search = resolve(places, path, op="grep") if path else canonical(places.workspace)
    rg = _ripgrep(places)
    if rg is not None:
        return _run_ripgrep(rg, pattern, search)
    try:
        compiled = re.compile(pattern)
    except re.error as e:
        raise ToolError(f"grep: invalid regex: {e}") from e
    return _search(compiled, search)


def _ripgrep(places: Places) -> str | None:
    """The first rg on PATH that no tool call can have put there."""
    for folder in os.get_exec_path():
        found = shutil.which(os.path.join(folder, "rg")) if os.path.isabs(folder) else None
        if found is None:
            continue
        real = os.path.realpath(found)
        if not any(within(real, canonical(place)) for place in (places.workspace, *places.allowed)):
            return found
    return None


def _run_ripgrep(rg: str, pattern: str, search: str) -> str:
    command = [rg, "--no-config", "-n", "--no-heading", "-e", pattern, "--", search]
    # Complaints go to memory, not to a second pipe that would have to be emptied at the same time.
    complaints = os.memfd_create("rg")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints) as process:
        assert process.stdout is not None
        # More than this can never be shown: no character takes more than four bytes.
        raw = process.stdout.read(4 * MAX_GREP + 4)
        cut = len(raw) > 4 * MAX_GREP
        if cut:
            process.kill()
        code = process.wait()
    complaint = os.pread(complaints, 4096, 0).decode("utf-8", "replace")
    if code == 1:
        return "no matches"
    if code != 0 and not cut:
        raise ToolError(f"grep: rg failed: {complaint}")
    text = raw.decode("utf-8", "replace")
    if len(text) > MAX_GREP:
        text = text[:MAX_GREP] + f"\n[output truncated at {MAX_GREP} bytes]"
    return text


def _search(compiled: re.Pattern[str], search: str) -> str:
    hits: list[str] = []
    budget = MAX_GREP
    for line in _matching_lines(compiled, search):
        budget -= len(line) + 1
        if budget < 0:
            hits.append(f"[output truncated at {MAX_GREP} bytes]")
            break
        hits.append(line)
    return "\n".join(hits) if hits else "no matches"


def _matching_lines(compiled: re.Pattern[str], search: str) -> Iterator[str]:
    for full in [search] if os.path.isfile(search) else _walk(search):
        try:
            with open(full, "rb") as file:
                if b"\0" in file.read(512):
                    continue
                file.seek(0)
                for number, raw in enumerate(file, 1):
                    # A long line and a pattern that backtracks would take for ever.
                    if len(raw) > MAX_GREP_LINE:
                        continue
                    line = raw.decode("utf-8", "replace").rstrip("\r\n")
                    if compiled.search(line):
                        yield f"{full}:{number}:{line}"
        except OSError:
            continue


def _walk(search: str) -> Iterator[str]:
    seen = 0
    for folder, folders, names in os.walk(search):
        folders[:] = [
            name
            for name in folders
            if name not in (".git", "node_modules") and not os.path.islink(os.path.join(folder, name))
        ]
        for name in names:
            full = os.path.join(folder, name)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            seen += 1
            if seen > MAX_WALK:
                return
            yield full
