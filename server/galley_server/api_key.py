"""The key that clients of a home send: the one that was set, else one made at the first start and kept in the home."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from galley_server.errors import ConfigError
from galley_server.secret import Secret

_SHORTEST: Final = 16
_LONGEST: Final = 4096


def api_key_of(path: Path, chosen: Secret | None) -> Secret:
    """Return `chosen`, else the key kept at `path`, making it if there is none yet. Raises ConfigError, OSError."""
    if chosen is not None:
        return chosen
    with suppress(FileExistsError):
        _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Put a new key there, whole or not at all; FileExistsError if there is one."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"galley_{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link and not a rename: whoever comes second must not replace a key that is in use.
        os.link(draft, path)
    finally:
        draft.unlink()


def _read(path: Path) -> Secret:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise ConfigError(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
        text = file.read(_LONGEST).decode("ascii", "replace").strip()
    # The content is never shown, not even in part: this message may end in a log.
    if len(text) < _SHORTEST or not all("!" <= character <= "~" for character in text):
        raise ConfigError(f"{path} does not hold a key: remove it, and the next start makes a new one")
    return Secret(text)
