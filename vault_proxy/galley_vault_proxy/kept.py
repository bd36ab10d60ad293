"""The small secrets that a home makes once and keeps: the service key, and the key that signs grants."""

import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret

_KEY: Final = re.compile(r"[!-~]{16,4096}")
_GRANT_KEY: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST: Final = 8192


def service_key_of(home: Path, chosen: Secret | Path | None) -> Secret:
    """Return `chosen` or what its file holds, else the key kept in the home, made if need be. Raises ConfigError."""
    if isinstance(chosen, Path):
        return _given(chosen)
    if chosen is not None:
        return chosen
    return Secret(kept(home / "service_key", _KEY, lambda: f"galley_proxy_{secrets.token_urlsafe(32)}"))


def grant_key_of(home: Path) -> bytes:
    """Return the key that signs grants, making it if there is none yet. Removing its file revokes every grant."""
    return bytes.fromhex(kept(home / "grant_key", _GRANT_KEY, lambda: secrets.token_hex(32)))


def private_directory(path: Path) -> None:
    """Make the directory if need be; ours, and closed to everybody else. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}; set GALLEY_PROXY_HOME") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is not a directory: remove it, or set GALLEY_PROXY_HOME")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)


def kept(path: Path, right: re.Pattern[str], new: Callable[[], str]) -> str:
    """The text kept at `path`, which `new` makes if there is none. Raises ConfigError."""
    try:
        with suppress(FileExistsError):
            _make(path, new())
        text = _read(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}") from None
    # The content is never shown, not even in part: this message may end in a log.
    if not right.fullmatch(text):
        raise ConfigError(f"{path} does not hold what the proxy wrote there: remove it, and the next start makes one")
    return text


def _given(path: Path) -> Secret:
    """The key that somebody else put there for us: who else may read it is his to say."""
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(f"GALLEY_PROXY_KEY_FILE: {path} cannot be read: {error.strerror}") from None
    if not _KEY.fullmatch(text):
        raise ConfigError(f"GALLEY_PROXY_KEY_FILE: {path} does not hold one word of 16 or more printable characters")
    return Secret(text)


def _make(path: Path, text: str) -> None:
    """Put it there, whole or not at all; FileExistsError if something is there."""
    if path.exists():
        raise FileExistsError
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link and not a rename: whoever comes second must not replace a key that is in use.
        os.link(draft, path)
    finally:
        draft.unlink()


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise ConfigError(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
        return file.read(_LONGEST).decode("ascii", "replace").strip()
