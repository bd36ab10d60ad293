"""Where the bytes of files lie: one file per content, named by its SHA-256, in a directory of the home.

All of it blocks; `Files` calls it on threads. A content is complete and synced before anything refers to it, so what a
crash can leave behind is a content that nobody refers to, and `sweep` removes those.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from galley_server.errors import Unavailable

_ARRIVING: Final = "arriving-"


class Arrival:
    """A content that is coming in."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / (_ARRIVING + secrets.token_hex(8))
        self.size = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO = os.fdopen(
            os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        )

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise unwritable(error) from error
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Make what came durable and return its SHA-256."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise unwritable(error) from error
        return self._hash.hexdigest()

    def discard(self) -> None:
        with suppress(OSError):  # a full disk, again, while flushing what nobody wants
            self._file.close()
        self.path.unlink(missing_ok=True)


class ContentStore:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def arrive(self) -> Arrival:
        try:
            return Arrival(self._directory)
        except OSError as error:
            raise unwritable(error) from error

    def keep(self, arrival: Arrival, sha256: str) -> None:
        """Give a finished arrival its name."""
        place = self.path(sha256)
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            arrival.path.replace(place)
            for folder in (place.parent, self._directory):
                _sync(folder)
        except OSError as error:
            raise unwritable(error) from error

    def path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    def sweep(self, wanted: Callable[[Collection[str]], Collection[str]]) -> None:
        """Remove what a crash left: arrivals, and contents that are not `wanted`. Call it before anything arrives."""
        for left in self._directory.glob(_ARRIVING + "*"):
            left.unlink(missing_ok=True)
        for folder in self._directory.iterdir():
            if folder.is_dir():
                names = [entry.name for entry in folder.iterdir()]
                for name in set(names) - set(wanted(names)):
                    (folder / name).unlink(missing_ok=True)


def unwritable(error: OSError) -> Unavailable:
    return Unavailable(f"the file could not be stored: {error.strerror or 'the disk failed'}; nothing was done")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
