"""Reaching the one server of a home, and starting it when none answers. Standard library only."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from galley_server.errors import GalleyError
from galley_server.home import run_dir, socket_to_dial
from galley_server.mcp.peer import is_ours, peer_uid

# -P: the directory a client happens to be in must not be able to put its own `galley_server` in front of ours.
SERVE = (sys.executable, "-P", "-m", "galley_server", "serve", "--detached")
START_TIMEOUT_S = 30.0
# A server that ends at once may have lost the race for the home to one that is still getting ready.
ENDED_GRACE_S = 5.0
_LOG_TAIL = 600
_LOG_LIMIT = 8 * 1024 * 1024
_NOBODY = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ENOTSOCK, errno.ECONNRESET})


class StartFailed(GalleyError):
    """No server of this home could be reached or started. The message says where to look."""


def dial(home: Path) -> socket.socket | None:
    """A connection to the home's server, or None if none answers."""
    path = socket_to_dial(home)
    if path is None:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(str(path))
        uid = peer_uid(sock)
    except OSError as error:
        sock.close()
        if error.errno in _NOBODY:
            return None
        raise StartFailed(f"{path} cannot be used: {error.strerror}") from error
    if not is_ours(uid):
        sock.close()
        raise StartFailed(f"{path} is served by uid {uid}, not by you: remove it, or set GALLEY_HOME to your own home")
    return sock


@dataclass(frozen=True)
class Launcher:
    """How a shim comes by a server of `home`."""

    home: Path
    environ: Mapping[str, str]
    command: Sequence[str] = SERVE
    timeout_s: float = START_TIMEOUT_S
    ended_grace_s: float = ENDED_GRACE_S

    def attempt(self, delay_s: float = 0.0) -> "Starter":
        return Starter(self, not_before=time.monotonic() + delay_s)

    def crashed(self) -> bool:
        """Whether the server that is gone left its socket behind; one that was shut down took it along."""
        path = socket_to_dial(self.home)
        return path is not None and path.exists()


class Starter:
    """One attempt to have a server: `step` until it returns a connection or raises StartFailed. Never blocks.

    Only the holder of `run/start.lock` starts a process, so two shims that begin at once end up on one server.
    """

    def __init__(self, how: Launcher, *, not_before: float) -> None:
        self._how = how
        self._not_before = not_before
        self._deadline = not_before + how.timeout_s
        self._lock: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._ended_at: float | None = None

    def step(self) -> socket.socket | None:
        if time.monotonic() < self._not_before:
            return None
        sock = dial(self._how.home)
        if sock is not None:
            return sock
        if self._lock is None:
            self._lock = _try_lock(run_dir(self._how.home) / "start.lock")
            # Whoever held the lock may have made a server ready between our dialling and our locking: dial again first.
        elif self._child is None:
            self._child = self._start()
        self._give_up_in_time()
        return None

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _start(self) -> "subprocess.Popen[bytes]":
        _set_aside(self._how.home / "server.log")
        log = os.open(self._how.home / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # The child outlives us by design; whoever starts the next one finds it by its socket, not by its pid.
            return subprocess.Popen(
                list(self._how.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._how.home,
                env={**self._how.environ, "GALLEY_HOME": str(self._how.home)},
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"The Galley server could not be started ({self._how.command[0]}): {error}") from error
        finally:
            os.close(log)

    def _give_up_in_time(self) -> None:
        now = time.monotonic()
        if self._child is not None and self._ended_at is None and self._child.poll() is not None:
            self._ended_at = now
        if self._ended_at is not None and now - self._ended_at >= self._how.ended_grace_s:
            assert self._child is not None
            raise StartFailed(
                f"The Galley server ended at once with status {self._child.returncode}. "
                f"{self._log_hint()} Run `galley doctor` to see what it needs."
            )
        if now >= self._deadline:
            raise StartFailed(
                f"No Galley server answered within {self._how.timeout_s:.0f} s of starting one. {self._log_hint()}"
            )

    def _log_hint(self) -> str:
        path = self._how.home / "server.log"
        try:
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - _LOG_TAIL))
                tail = log.read().decode(errors="replace").strip()
        except OSError:
            tail = ""
        last = tail.splitlines()[-1] if tail else "it is empty"
        return f"See {path}; its last line: {last}."


def _set_aside(log: Path) -> None:
    """Keep one old log, so that the file of a home used for years stays bounded."""
    try:
        if log.stat().st_size > _LOG_LIMIT:
            log.replace(log.with_name("server.log.1"))
    except FileNotFoundError:
        pass


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
