"""The hand's event loop: one thread, so that forking is safe, and a clock that stops while the sandbox is frozen."""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

# A turn never waits longer than LONGEST_WAIT, so a gap above LONGEST_TURN means that the
# whole sandbox stood still (paused, or starved): that time counts against no timeout.
LONGEST_WAIT = 2.0
LONGEST_TURN = 5.0


class Clock:
    """Seconds the sandbox has really been running: what it was frozen for is left out."""

    def __init__(self, reading: float) -> None:
        self.now = 0.0
        self._last = reading

    def advance(self, reading: float) -> None:
        elapsed = reading - self._last
        self._last = reading
        if elapsed < LONGEST_TURN:
            self.now += elapsed


class Timer:
    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Callable[[], None]) -> None:
        self.at = at
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._children: dict[int, Callable[[int], None]] = {}
        self._clock = Clock(time.monotonic())
        self._stopped = False
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._on_wake)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    @property
    def now(self) -> float:
        return self._clock.now

    @property
    def children(self) -> set[int]:
        return set(self._children)

    def watch(self, fd: int, action: Callable[[int], None], *, read: bool = True, write: bool = False) -> None:
        """Call `action` with the ready events. Watching again replaces what was asked before; neither: stop."""
        events = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, action)
        else:
            self._selector.register(fd, events, action)

    def forget(self, fd: int) -> None:
        self.watch(fd, _nothing, read=False)

    def later(self, delay: float, action: Callable[[], None]) -> Timer:
        timer = Timer(self.now + delay, action)
        heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, action: Callable[[int], None]) -> None:
        """Call `action` with the wait status when this child has ended."""
        self._children[pid] = action

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            self.turn()

    def turn(self) -> None:
        wait = LONGEST_WAIT
        if self._timers:
            wait = max(0.0, min(wait, self._timers[0].at - self.now))
        ready = self._selector.select(wait)
        self._clock.advance(time.monotonic())
        for key, events in ready:
            # An earlier action of this turn may have closed this one.
            if self._selector.get_map().get(key.fd) is key:
                key.data(events)
        while self._timers and self._timers[0].at <= self.now:
            action = heapq.heappop(self._timers).action
            if action is not None:
                action()

    def _on_wake(self, _events: int) -> None:
        try:
            while os.read(self._wake_r, 4096):
                pass
        except BlockingIOError:
            pass
        self._reap()

    def _reap(self) -> None:
        # As PID 1 we inherit every orphan, so all are waited for, known or not.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            action = self._children.pop(pid, None)
            if action is not None:
                action(status)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """SIGCHLD only has to wake the selector, through the wake-up descriptor."""


def _nothing(_events: int) -> None:
    """The action of a descriptor that is watched for nothing."""
