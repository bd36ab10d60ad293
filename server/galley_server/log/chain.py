"""What makes the log tamper-evident: the key, the hash of each row over the one before, the signatures. Pure but for
`ChainKey.open`."""

import hmac
import json
import os
import re
import secrets
from pathlib import Path
from typing import Final, Self, final

from galley_server.errors import ConfigError
from galley_server.log.row import Tombstone

# What the first row of a session is chained to.
GENESIS: Final = bytes(32)

_HEX_KEY: Final = re.compile(r"^[0-9a-f]{64}$")
# Each append makes two small JSON arrays: put together by hand they take a quarter of the time of an encoder.
_string: Final = json.encoder.encode_basestring


@final
class ChainKey:
    """The secret behind the chain. It is kept in a file of its own: who can write the database alone cannot sign."""

    __slots__ = ("_heads", "_rows", "_tombstones", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ConfigError("the key of the log has fewer than 32 bytes")
        # A key per purpose, so that no signature can pass for another kind.
        self._rows = _mac(secret, b"galley row")
        self._heads = _mac(secret, b"galley head")
        self._tombstones = _mac(secret, b"galley tombstone")
        self.fingerprint = _mac(secret, b"galley fingerprint")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the key, or make one if the file does not exist. Blocking.

        Raises ConfigError when others can read it, or when it is no key.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return cls(_read(path))
        except OSError as error:
            raise ConfigError(f"the key of the log cannot be made at {path}: {error.strerror}") from error
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(descriptor)
        _sync_folder(path.parent)
        return cls(_read(path))

    def __repr__(self) -> str:
        return "ChainKey(***)"

    def row_hash(
        self, previous: bytes, session_id: str, seq: int, id: str, type: str, at: int, cuts: str | None, body: bytes
    ) -> bytes:
        """Return HMAC(key, previous + canonical JSON of everything that is stored of this row).

        `body` is canonical JSON already. Large content stands in it only as `cuts`, which hold its SHA-256.
        """
        held = "null" if cuts is None else _string(cuts)
        facts = f"[{_string(session_id)},{seq},{_string(id)},{_string(type)},{at},{held},"
        return hmac.digest(self._rows, b"".join((previous, facts.encode(), body, b"]")), "sha256")

    def sign_head(self, session_id: str, seq: int, hash: bytes) -> bytes:
        return hmac.digest(self._heads, f'[{_string(session_id)},{seq},"{hash.hex()}"]'.encode(), "sha256")

    def sign_tombstone(self, stone: Tombstone, at: int) -> bytes:
        facts = f'[{_string(stone.session_id)},{stone.seq},"{stone.hash.hex()}",{at},{_string(stone.caller)}]'
        return hmac.digest(self._tombstones, facts.encode(), "sha256")


def _mac(secret: bytes, purpose: bytes) -> bytes:
    return hmac.digest(secret, purpose, "sha256")


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the key of the log cannot be read from {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"the key of the log can be read by others: chmod 600 {path}")
    if _HEX_KEY.match(text) is None:
        raise ConfigError(f"{path} does not hold the key of the log (64 hexadecimal digits): restore it from a backup")
    return bytes.fromhex(text)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
