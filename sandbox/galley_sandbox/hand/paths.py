"""Where the file tools may go: paths resolved against the workspace, every symlink followed, then contained."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

_MAX_LINKS = 40


class ToolError(Exception):
    """The tool failed; the text is the result."""


class Places(NamedTuple):
    workspace: str
    allowed: tuple[str, ...]  # further directories the file tools reach
    read_only: tuple[str, ...]  # of those, the ones nothing is written to


def reason(error: OSError) -> str:
    """One wording for the common failures, whatever the platform calls them."""
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    if isinstance(error, NotADirectoryError):
        return "not a directory"
    if isinstance(error, IsADirectoryError):
        return "is a directory"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileExistsError):
        return "file already exists"
    if error.errno == errno.ELOOP:
        return "too many levels of symbolic links"
    return (error.strerror or "i/o error").lower()


def canonical(path: str) -> str:
    """The path with every symlink followed, a dangling one too; what does not exist yet stays as spelled."""
    pending = [part for part in os.path.normpath(path).split("/") if part]
    pending.reverse()
    current = "/"
    links = 0
    while pending:
        part = pending.pop()
        if part in (".", ""):
            continue
        if part == "..":
            current = os.path.dirname(current)
            continue
        step = os.path.join(current, part)
        try:
            mode = os.lstat(step).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return os.path.normpath(os.path.join(step, *reversed(pending)))
        if not stat.S_ISLNK(mode):
            current = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(step)
        if target.startswith("/"):
            current = "/"
        pending.extend(reversed(target.split("/")))
    return current


def within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def resolve(places: Places, path: str, *, op: str) -> str:
    root = canonical(places.workspace)
    if "\0" in path:
        raise ToolError(f"{op}: path {path!r}: embedded null byte")
    try:
        full = canonical(path if path.startswith("/") else os.path.join(root, path))
    except OSError as e:
        raise ToolError(f"{op}: path {path!r}: {reason(e)}") from e
    if within(full, root) or any(within(full, canonical(place)) for place in places.allowed):
        return full
    raise ToolError(
        f"{op}: path {path!r} is outside the session's working directory and its other permitted directories"
    )


def refuse_read_only(places: Places, target: str, *, op: str, path: str) -> None:
    for place in places.read_only:
        if within(target, canonical(place)):
            raise ToolError(f"{op}: {path} is inside read-only directory {place}")
