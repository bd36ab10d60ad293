"""One server per home: a lock that the kernel releases when its holder dies, however it dies."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, final

from galley_server.errors import ConfigError


@final
class HomeLock:
    """Held for the length of a block. The file then has this process's id in it, for people and for messages.

    It stays when the block ends: removing it would let two processes lock two files of one name. A child process does
    not inherit the lock.
    """

    @classmethod
    @contextmanager
    def acquire(cls, path: Path) -> Iterator[Self]:
        """Raises ConfigError, naming the holder, when another process has the lock. Never waits."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"the lock file {path} cannot be opened: {error.strerror}") from error
        try:
            _lock(descriptor, path)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield cls()
            finally:
                # Closing alone would leave it to a child that is between its fork and its exec.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise ConfigError(
                f"{path} cannot be locked ({error.strerror}): move GALLEY_HOME to a local disk"
            ) from error
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise ConfigError(
            f"another server (process {holder}) already runs on {path.parent}: "
            "use that one, stop it, or set GALLEY_HOME to another folder"
        ) from None
