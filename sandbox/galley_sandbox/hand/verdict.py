"""Which limit, if any, ended a command: counters of the kernel before and after, and how the command ended."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from galley_sandbox.hand.config import Gauge

_NO_MORE_PROCESSES = (
    "fork: retry: Resource temporarily unavailable",
    "fork: Resource temporarily unavailable",
    "[Errno 11] Resource temporarily unavailable",
    "can't start new thread",
    "Cannot fork",
)
_DISK_FULL = ("No space left on device", "Disk quota exceeded")
_MEMORY_FULL = ("MemoryError", "Cannot allocate memory", "cannot allocate memory")


def exceeded(limit: str, text: str = "") -> str:
    return "resource_limit_exceeded: {}{}{}".format(limit, "\n" if text else "", text)


class Reading(NamedTuple):
    memory_kills: int
    refused_processes: int


class Gauges:
    """Counts that only rise; 0 for ever where the kernel does not count for us."""

    def __init__(self, memory: Gauge, pids: Gauge) -> None:
        self._memory = (_open(memory), memory.key.encode())
        self._pids = (_open(pids), pids.key.encode())

    @property
    def counts_memory(self) -> bool:
        return self._memory[0] >= 0

    def read(self) -> Reading:
        return Reading(_count(*self._memory), _count(*self._pids))


def _open(gauge: Gauge) -> int:
    if gauge.fd >= 0:
        os.set_inheritable(gauge.fd, False)
        return gauge.fd
    if not gauge.path:
        return -1
    try:
        return os.open(gauge.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _count(fd: int, key: bytes) -> int:
    if fd < 0:
        return 0
    try:
        lines = os.pread(fd, 4096, 0).splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(b" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return 0


class Ending(NamedTuple):
    """How a command ended: its exit code as a shell counts it (128 + signal), or -1 if its shell went down with it."""

    code: int
    before: Reading
    after: Reading
    disk_full: bool
    memory_uncounted: bool
    ending: str


def of_failure(end: Ending) -> str | None:
    """The limit that a failed command ran into, or None if it failed by itself."""
    if end.after.memory_kills > end.before.memory_kills:
        return "memory"
    if end.code == 128 + signal.SIGXCPU:
        return "cpu_time"
    if end.code == 128 + signal.SIGXFSZ:
        return "disk"
    if end.after.refused_processes > end.before.refused_processes:
        return "pids"
    # What the kernel does not count (a limit per user, a full disk) only the program's last words tell.
    if any(words in end.ending for words in _NO_MORE_PROCESSES):
        return "pids"
    if end.disk_full and any(words in end.ending for words in _DISK_FULL):
        return "disk"
    if end.memory_uncounted and any(words in end.ending for words in _MEMORY_FULL):
        return "memory"
    return None


def is_full(path: str) -> bool:
    """Whether the file system has no room left to speak of: the last blocks are often not to be had."""
    try:
        state = os.statvfs(path)
    except OSError:
        return False
    return state.f_bavail * 16 < state.f_blocks or (state.f_files > 0 and state.f_favail == 0)
