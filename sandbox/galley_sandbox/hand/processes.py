"""The process tree of the sandbox, and how a part of it is ended for certain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galley_sandbox.hand.loop import Loop

NOBODY = -1  # a keeper that is gone: only strays are left to end
_ROUND_S = 0.004
_ROUNDS = 250


def parents() -> dict[int, int]:
    """Parent by process, zombies left out."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The command's name may hold anything, so count from its closing parenthesis.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields and fields[0] not in (b"Z", b"X"):
            found[int(name)] = int(fields[1])
    return found


def descendants(parent_of: dict[int, int], roots: Iterable[int]) -> set[int]:
    """All that descend from `roots`, the roots themselves left out."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    pending = list(roots)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def strays(parent_of: dict[int, int], own: set[int]) -> set[int]:
    """Processes that were handed to PID 1 and that it never started: their keeper was killed."""
    orphans = {pid for pid, parent in parent_of.items() if parent == 1 and pid not in own}
    return orphans | descendants(parent_of, orphans)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


class Purge:
    """Ends everything below `keeper` (and every stray), round by round, then calls `done`.

    All are stopped before any is killed, so that none can fork while others die.
    """

    def __init__(self, loop: Loop, keeper: int, done: Callable[[], None]) -> None:
        self._loop = loop
        self._keeper = keeper
        self._done = done
        self._rounds = 0
        self._round()

    def _targets(self) -> set[int]:
        parent_of = parents()
        return descendants(parent_of, [self._keeper]) | strays(parent_of, self._loop.children)

    def _round(self) -> None:
        targets = self._targets()
        if not targets:
            self._done()
            return
        stopped: set[int] = set()
        for _ in range(20):
            fresh = targets - stopped
            if not fresh:
                break
            for pid in fresh:
                send(pid, signal.SIGSTOP)
            stopped |= fresh
            targets = self._targets()
        for pid in targets | stopped:
            send(pid, signal.SIGKILL)
        self._rounds += 1
        if self._rounds > _ROUNDS and os.getpid() == 1:
            # It forks faster than we look. To PID 1, -1 means everybody else in the sandbox, in one stroke.
            send(-1, signal.SIGKILL)
            self._rounds = 0
        self._loop.later(_ROUND_S, self._round)
