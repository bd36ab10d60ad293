"""Where the embedded store's keys are kept: a file of mode 0600, or the keyring of the operating system.

One key per line, `<id> <hex>`, the active one first. There is more than one only while a rotation is under way.
"""

import fcntl
import importlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, cast

from galley_vault_proxy.errors import ConfigError, StoreUnavailable
from galley_vault_proxy.settings import KeySource
from galley_vault_proxy.store.sealing import KEY_BYTES, Keys

_LINE: Final = re.compile(r"([0-9a-f]{16}) ([0-9a-f]{64})")
_LOCK_S: Final = 10.0
_SERVICE: Final = "galley-vault-proxy"


class KeyPlace(Protocol):
    """Keeps the keys. Every call blocks, and raises ConfigError when what is kept cannot be used."""

    name: str

    def load(self) -> Keys | None:
        """None when there are none yet."""
        ...

    def save(self, keys: Keys) -> None:
        """Put these in the place of those kept, all or nothing."""
        ...


class _Ring(Protocol):
    def get_password(self, service: str, user: str) -> str | None: ...
    def set_password(self, service: str, user: str, password: str) -> None: ...


class KeyFile:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def load(self) -> Keys | None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from None
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077:
                raise ConfigError(f"{self._path} can be read by others: chmod 600 it, then rotate the key")
            return _parsed(file.read(1 << 16).decode("ascii", "replace"), self.name)

    def save(self, keys: Keys) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".store_key-")  # mkstemp makes it 0600
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(_text(keys))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except OSError as error:
            os.unlink(name)
            raise StoreUnavailable(f"{self._path} cannot be written: {error.strerror}") from None
        _sync_directory(self._path.parent)


class KeyRing:
    """The operating system's keyring, through the `keyring` package (an extra of this one)."""

    def __init__(self, home: Path) -> None:
        self.name = f"the keyring's entry {_SERVICE!r} for {home}"
        self._user = str(home)

    def load(self) -> Keys | None:
        ring, errors = _ring()
        try:
            text = ring.get_password(_SERVICE, self._user)
        except errors as error:
            raise ConfigError(f"{self.name} cannot be read ({type(error).__name__}): {_NO_RING}") from None
        return None if text is None else _parsed(text, self.name)

    def save(self, keys: Keys) -> None:
        ring, errors = _ring()
        try:
            ring.set_password(_SERVICE, self._user, _text(keys))
        except errors as error:
            raise ConfigError(f"{self.name} cannot be written ({type(error).__name__}): {_NO_RING}") from None


_NO_RING: Final = "unlock or install a keyring, or set GALLEY_PROXY_STORE_KEY=file"


def key_place(home: Path, source: KeySource) -> KeyPlace:
    return KeyFile(home / "store_key") if source == "file" else KeyRing(home)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Only one process at a time makes or changes keys. Blocks, bounded."""
    descriptor = os.open(home / "store_key.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StoreUnavailable("another process is changing the store's keys: try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _ring() -> tuple[_Ring, type[Exception]]:
    # An extra, and its import asks the operating system: only those who chose the keyring pay for it.
    try:
        ring = importlib.import_module("keyring")
        errors = importlib.import_module("keyring.errors")
    except ImportError:
        raise ConfigError(
            "GALLEY_PROXY_STORE_KEY=keyring needs the package `keyring`: pip install 'galley-agents[keyring]'"
        ) from None
    return cast(_Ring, ring), cast(type[Exception], errors.KeyringError)


def _text(keys: Keys) -> str:
    ordered = [keys.active, *sorted(key_id for key_id in keys.by_id if key_id != keys.active)]
    return "".join(f"{key_id} {keys.by_id[key_id].hex()}\n" for key_id in ordered)


def _parsed(text: str, name: str) -> Keys:
    # What does not parse is not shown: it may be most of a key.
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{name} is damaged in line {number}: put a copy of it back")
        found[match[1]] = bytes.fromhex(match[2])
        assert len(found[match[1]]) == KEY_BYTES
    if not found:
        raise ConfigError(f"{name} is empty: put a copy of it back")
    return Keys(next(iter(found)), found)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
