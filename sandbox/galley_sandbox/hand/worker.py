"""One forked child for one piece of work on files: it runs as a tool, so what it touches and uses up is a tool's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from galley_sandbox.hand import hardening, processes

if TYPE_CHECKING:
    from galley_sandbox.hand.config import Config
    from galley_sandbox.hand.loop import Loop

_READ = 64 * 1024


def close_all_but(keep: set[int]) -> None:
    """In a forked child: let go of every descriptor of the hand, its sockets above all."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the one that listed the directory


class Worker:
    """Runs `body(stdin, stdout)` in a child and hands over what it writes, in pieces, as fast as they are asked for."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        body: Callable[[int, int], None],
        *,
        as_tool: bool,
        on_output: Callable[[bytes], None],
        on_end: Callable[[int], None],
        cpu_s: int = 0,
    ) -> None:
        self._loop = loop
        self._on_output = on_output
        self._on_end = on_end
        self._status: int | None = None
        self._finished = False
        in_r, in_w = os.pipe()
        out_r, out_w = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (in_r, in_w, out_r, out_w):
                os.close(fd)
            raise
        if self.pid == 0:
            _child(config, body, in_r, out_w, as_tool=as_tool, cpu_s=cpu_s or config.cpu_s)
        os.close(in_r)
        os.close(out_w)
        self._in = in_w
        self._out = out_r
        os.set_blocking(in_w, False)
        os.set_blocking(out_r, False)
        loop.on_exit(self.pid, self._exited)
        loop.watch(out_r, self._readable)

    def kill(self) -> None:
        if self._status is None:
            for pid in processes.descendants(processes.parents(), [self.pid]):
                processes.send(pid, signal.SIGKILL)
            processes.send(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Let the child clean up behind itself."""
        if self._status is None:
            processes.send(self.pid, signal.SIGTERM)

    def pause(self) -> None:
        if self._out >= 0:
            self._loop.forget(self._out)

    def proceed(self) -> None:
        if self._out >= 0:
            self._loop.watch(self._out, self._readable)

    def write(self, data: bytes) -> int:
        """How many of these bytes the child's pipe took."""
        if self._in < 0:
            return len(data)
        try:
            return os.write(self._in, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self.close_input()
            return len(data)

    def when_writable(self, action: Callable[[int], None] | None) -> None:
        if self._in >= 0:
            if action is None:
                self._loop.forget(self._in)
            else:
                self._loop.watch(self._in, action, read=False, write=True)

    def close_input(self) -> None:
        if self._in >= 0:
            self._loop.forget(self._in)
            os.close(self._in)
            self._in = -1

    def _readable(self, _events: int) -> None:
        try:
            data = os.read(self._out, _READ)
        except BlockingIOError:
            return
        if data:
            self._on_output(data)
            return
        self._loop.forget(self._out)
        os.close(self._out)
        self._out = -1
        self._maybe_end()

    def _exited(self, status: int) -> None:
        self._status = status
        self._maybe_end()

    def _maybe_end(self) -> None:
        if self._status is not None and self._out < 0 and not self._finished:
            self._finished = True
            self.close_input()
            self._on_end(self._status)


def _child(
    config: Config, body: Callable[[int, int], None], stdin: int, stdout: int, *, as_tool: bool, cpu_s: int
) -> None:
    """Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        close_all_but({stdin, stdout})
        os.setsid()
        os.chdir(config.workspace)
        if as_tool:
            hardening.become_tool(config, cpu_s=cpu_s)
        body(stdin, stdout)
        code = 0
    finally:
        # Not sys.exit: nothing of the parent's clean-up may run in the child.
        os._exit(code)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:_READ]) :]
