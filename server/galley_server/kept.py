"""The small values that a home makes once and keeps: the API key of its clients, and the id its sandboxes carry."""

import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from galley_server.errors import ConfigError
from galley_server.secret import Secret

_KEY: Final = re.compile(r"[!-~]{16,4096}")
_HOME_ID: Final = re.compile(r"home_[0-9a-f]{16}")
_LONGEST: Final = 8192


def api_key_of(path: Path, chosen: Secret | None) -> Secret:
    """Return `chosen`, else the key kept at `path`, making it if there is none yet. Raises ConfigError."""
    if chosen is not None:
        return chosen
    return Secret(_kept(path, _KEY, lambda: f"galley_{secrets.token_urlsafe(32)}"))


def service_key_of(path: Path, chosen: Secret | Path | None) -> Secret:
    """The vault proxy's key: `chosen`, else the one kept at `path`, made if there is none yet as the proxy makes it.

    `chosen` a path: what somebody else put there for us. Raises ConfigError.
    """
    if isinstance(chosen, Path):
        return _given(chosen)
    if chosen is not None:
        return chosen
    return Secret(_kept(path, _KEY, lambda: f"galley_proxy_{secrets.token_urlsafe(32)}"))


def _given(path: Path) -> Secret:
    """Who else may read it is for him to say who put it there; a mounted secret is often a link."""
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(f"GALLEY_PROXY_KEY_FILE: {path} cannot be read: {error.strerror}") from None
    if not _KEY.fullmatch(text):
        raise ConfigError(f"GALLEY_PROXY_KEY_FILE: {path} does not hold one word of 16 or more printable characters")
    return Secret(text)


def home_id_of(path: Path) -> str:
    """Return the id kept at `path`, making it if there is none yet. Raises ConfigError."""
    return _kept(path, _HOME_ID, lambda: f"home_{secrets.token_hex(8)}")


def _kept(path: Path, right: re.Pattern[str], new: Callable[[], str]) -> str:
    try:
        with suppress(FileExistsError):
            _make(path, new())
        text = _read(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}") from None
    # The content is never shown, not even in part: this message may end in a log.
    if not right.fullmatch(text):
        raise ConfigError(
            f"{path} does not hold what Galley wrote there: remove it, and the next start makes a new one"
        )
    return text


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
