"""The shape of results: content blocks, cleaned text, long text cut to a preview with the whole in a file."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

MAX_TEXT = 100_000
HEAD = 4_000
TAIL = 16_000
_KEEP = 4 * MAX_TEXT  # no character takes more than four bytes
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def result_json(content: str | list[dict[str, Any]], *, is_error: bool) -> bytes:
    """A tool result as it crosses to the server. Empty text is no block: the Messages API takes none."""
    blocks = _text_blocks(content) if isinstance(content, str) else content
    return json.dumps({"content": blocks, "is_error": is_error}).encode()


def _text_blocks(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def clean(raw: bytes) -> str:
    return _ANSI.sub("", raw.decode("utf-8", "replace"))


def create_result_file(folder: str, call_id: str) -> tuple[int, str]:
    """A new file for one call's output. Tools may delete these files and must not be able to redirect them."""
    stem = _UNSAFE.sub("_", call_id) or "output"
    for attempt in range(100):
        path = "{}/{}{}.txt".format(folder, stem, f"-{attempt}" if attempt else "")
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), path
        except FileExistsError:
            continue
    raise FileExistsError(folder)


def preview(head: str, tail: str, *, size: str, path: str | None) -> str:
    place = f"the whole output is in {path}" if path else "the rest could not be kept: the disk is full"
    return f"[output truncated]\n[{size} in all; {place}; here are its beginning and its end]\n{head}\n[...]\n{tail}"


def bounded(text: str, folder: str, call_id: str) -> str:
    """`text` itself, or a preview of it when it is longer than a result may be."""
    if len(text) <= MAX_TEXT:
        return text
    path: str | None = None
    try:
        fd, path = create_result_file(folder, call_id)
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
    except OSError:
        path = None
    return preview(text[:HEAD], text[-TAIL:], size=f"{len(text):,} characters", path=path)


class Output:
    """What one command prints, held in bounded memory: the whole while it is short, then a file and the two ends."""

    def __init__(self, folder: str, call_id: str, *, early: bytes = b"") -> None:
        self._folder = folder
        self._call_id = call_id
        self._held = bytearray(early)
        self._tail = bytearray()
        self._file = -1
        self._path: str | None = None
        self.size = len(early)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if not self._tail:
            self._held += data
            if self.size > _KEEP:
                self._spill()
            return
        self._write(data)
        self._tail += data
        del self._tail[: max(0, len(self._tail) - 4 * TAIL)]

    def _spill(self) -> None:
        try:
            self._file, self._path = create_result_file(self._folder, self._call_id)
        except OSError:
            self._path = None
        self._tail += self._held[-4 * TAIL :]
        self._write(bytes(self._held))
        del self._held[4 * HEAD :]

    def _write(self, data: bytes) -> None:
        if self._file < 0:
            return
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            self.close()
            self._path = None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def ending(self) -> str:
        """The last few thousand characters, to judge a failure by."""
        return clean(bytes((self._tail or self._held)[-4096:]))

    def text(self) -> str:
        self.close()
        if not self._tail:
            return bounded(clean(bytes(self._held)).rstrip("\n"), self._folder, self._call_id)
        head, tail = clean(bytes(self._held))[:HEAD], clean(bytes(self._tail)).rstrip("\n")[-TAIL:]
        return preview(head, tail, size=f"{self.size:,} bytes", path=self._path)
