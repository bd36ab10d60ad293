"""Files put into and taken out of the sandbox, each through a worker, at the speed of the slower side."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from galley_sandbox.hand.ledger import Refused
from galley_sandbox.hand.paths import canonical, reason, within
from galley_sandbox.hand.worker import Worker, write_all

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from galley_sandbox.hand.resident import Resident

_PIECE = 64 * 1024
_MAX_ROOTS = 4 * 1024 * 1024
ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# The child's last words, after which there is no more: what went wrong, or nothing.
_FAILED = b"F"
_BYTES = b"B"


class Incoming:
    """A file on its way in. It appears whole or not at all."""

    def __init__(
        self,
        resident: Resident,
        meta: dict[str, Any],
        took: Callable[[int], None],
        done: Callable[[str | None], None],
    ) -> None:
        path = _checked(meta)
        mode = meta.get("mode")
        self._mode = mode if isinstance(mode, int) and 0 <= mode <= 0o777 else 0o644
        roots = meta.get("roots") is True
        self._took = took
        self._done = done
        self._pending = bytearray()
        self._ended = False
        self._abandoned = False
        self._said = bytearray()
        # What tools must not change belongs to the hand; everything else to them.
        as_tool = not within(os.path.normpath(path), resident.config.uploads)
        self._worker = Worker(
            resident.loop,
            resident.config,
            lambda stdin, stdout: _store(path, self._mode, stdin, stdout, roots=roots),
            as_tool=as_tool,
            on_output=self._said.extend,
            on_end=self._over,
        )

    def add(self, data: bytes) -> None:
        self._pending += data
        self._push(0)

    def end(self) -> None:
        self._ended = True
        self._push(0)

    def abandon(self) -> None:
        self._abandoned = True
        self._worker.terminate()

    def _push(self, _events: int) -> None:
        while self._pending:
            taken = self._worker.write(bytes(self._pending[:_PIECE]))
            if taken == 0:
                self._worker.when_writable(self._push)
                return
            del self._pending[:taken]
            self._took(taken)
        self._worker.when_writable(None)
        if self._ended:
            self._worker.close_input()

    def _over(self, status: int) -> None:
        if self._abandoned:
            return
        if bytes(self._said) == b"stored" and self._ended and status == 0:
            self._done(None)
        else:
            self._done(self._said.decode("utf-8", "replace") or f"the write was killed (status {status})")


class _Abandoned(BaseException):
    """The server went away in the middle."""


def _on_term(_signum: int, _frame: FrameType | None) -> None:
    raise _Abandoned


def _store(path: str, mode: int, stdin: int, stdout: int, *, roots: bool) -> None:
    """In the child: write beside the target, then move it there. `roots`: behind what this sandbox trusts already."""
    signal.signal(signal.SIGTERM, _on_term)
    try:
        target = canonical(path)
        folder = os.path.dirname(target)
        os.makedirs(folder, exist_ok=True)
        if os.path.isdir(target):
            raise IsADirectoryError
        fd, temporary = tempfile.mkstemp(prefix=".galley-", dir=folder)
        try:
            if roots:
                _copy_roots(fd)
            while True:
                data = os.read(stdin, _PIECE)
                if not data:
                    break
                write_all(fd, data)
            os.fchmod(fd, mode)
            os.close(fd)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as e:
        write_all(stdout, reason(e).encode())
        return
    write_all(stdout, b"stored")


def _copy_roots(fd: int) -> None:
    """The certificate authorities of the image, wherever it has them."""
    for path in ROOTS:
        try:
            with open(path, "rb") as file:
                write_all(fd, file.read(_MAX_ROOTS) + b"\n")
                return
        except OSError:
            continue


class Outgoing:
    """A regular file on its way out."""

    def __init__(
        self,
        resident: Resident,
        meta: dict[str, Any],
        piece: Callable[[bytes], None],
        done: Callable[[str | None], None],
    ) -> None:
        path = _checked(meta)
        self._piece = piece
        self._done = done
        self._verdict = b""
        self._said = bytearray()
        self._abandoned = False
        self._worker = Worker(
            resident.loop,
            resident.config,
            lambda _stdin, stdout: _load(path, stdout),
            as_tool=True,
            on_output=self._more,
            on_end=self._over,
        )
        self._worker.close_input()

    def pause(self) -> None:
        self._worker.pause()

    def proceed(self) -> None:
        self._worker.proceed()

    def abandon(self) -> None:
        self._abandoned = True
        self._worker.kill()
        self._worker.proceed()

    def _more(self, data: bytes) -> None:
        if self._abandoned:
            return
        if not self._verdict:
            self._verdict, data = data[:1], data[1:]
        if self._verdict == _FAILED:
            self._said += data
        elif data:
            self._piece(data)

    def _over(self, status: int) -> None:
        if self._abandoned:
            return
        if self._verdict == _BYTES and status == 0:
            self._done(None)
        else:
            self._done(self._said.decode("utf-8", "replace") or f"the read was killed (status {status})")


def _load(path: str, stdout: int) -> None:
    """In the child. An error half-way ends the child with another status, so it is not taken for the end."""
    try:
        # Not blocking: opening a FIFO that nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            write_all(stdout, _FAILED + b"not a regular file")
            return
    except OSError as e:
        write_all(stdout, _FAILED + reason(e).encode())
        return
    write_all(stdout, _BYTES)
    while True:
        data = os.read(fd, _PIECE)
        if not data:
            return
        write_all(stdout, data)


def _checked(meta: dict[str, Any]) -> str:
    path = meta.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise Refused("a file is named by an absolute path")
    return path
