"""The files of the audit log: appended to by several processes, rotated, read from any line's id. Blocking I/O."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Fields = Mapping[str, str | int | float]

_FILES: Final = 8
_ID: Final = re.compile(r"aud_([0-9]{8})([0-9]{12})")
_NAME: Final = re.compile(r"([0-9]{8})\.jsonl")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line begins: the number of its file and the byte in it."""

    file: int
    offset: int

    @property
    def id(self) -> str:
        return f"aud_{self.file:08d}{self.offset:012d}"

    @classmethod
    def of(cls, line_id: str) -> "Place | None":
        found = _ID.fullmatch(line_id)
        return None if found is None else cls(int(found[1]), int(found[2]))


class AuditFiles:
    """A directory of numbered files, together never much larger than `max_bytes`: the oldest goes."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._file_bytes = max_bytes // _FILES

    def prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)

    def append(self, lines: Sequence[Fields]) -> int:
        """Write as many of them as the current file takes, at least one. Returns how many. Raises OSError: none."""
        with self._lock():
            number = self._current()
            descriptor = os.open(
                self._path(number), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                size = _whole_lines(descriptor)
                text, count = _text(lines, Place(number, size), self._file_bytes)
                _write(descriptor, text, size)
                return count
            finally:
                os.close(descriptor)

    def scan(self, after: Place | None) -> Iterator[bytes]:
        """The lines after a place, oldest first. Lines that fell out of the bound are skipped in silence."""
        for number in self._numbers():
            if after is not None and number < after.file:
                continue
            yield from self._lines(number, after.offset if after is not None and after.file == number else None)

    def _lines(self, number: int, after: int | None) -> Iterator[bytes]:
        try:
            file = self._path(number).open("rb")
        except FileNotFoundError:
            return  # rotated away while it was the next to be read
        with file:
            if after is not None:
                file.seek(after)
                file.readline()
            for line in file:
                if line.endswith(b"\n"):
                    yield line

    def _current(self) -> int:
        numbers = self._numbers()
        if not numbers:
            return 1
        if self._path(numbers[-1]).stat().st_size < self._file_bytes:
            return numbers[-1]
        for number in numbers[: len(numbers) + 1 - _FILES]:
            self._path(number).unlink(missing_ok=True)
        return numbers[-1] + 1

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(name) for name in os.listdir(self._directory))
        return sorted(int(match[1]) for match in found if match)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.jsonl"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _text(lines: Sequence[Fields], start: Place, full: int) -> tuple[bytes, int]:
    """The lines as text, up to the one that fills the file, and how many they are."""
    out, count = bytearray(), 0
    for line in lines:
        place = Place(start.file, start.offset + len(out))
        text = json.dumps({"id": place.id, **line}, ensure_ascii=False, separators=(",", ":"))
        out += text.encode(errors="replace") + b"\n"
        count += 1
        if start.offset + len(out) >= full:
            break
    return bytes(out), count


def _whole_lines(descriptor: int) -> int:
    """The size of the file, once half a line that a dying writer left is cut off."""
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _write(descriptor: int, text: bytes, size: int) -> None:
    try:
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        # A full disk takes a part: what is not all there must not be there at all.
        os.ftruncate(descriptor, size)
        raise
