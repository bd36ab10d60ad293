"""The secret store of one machine: SQLite, every secret sealed with AES-256-GCM under a key kept outside the file.

A ciphertext is bound to its vault, credential and version. Only the current version is kept: what a rotation or a purge
replaces is overwritten in the file (`secure_delete`) and its log (checkpoint).
"""

import asyncio
import base64
import hashlib
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self, TypeVar

from galley_vault_proxy.errors import (
    AccessRefused,
    ConfigError,
    InvalidRequest,
    SecretMissing,
    SessionClosed,
    StoreUnavailable,
    Unavailable,
    VersionConflict,
)
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import KeySource
from galley_vault_proxy.state import Schema, State
from galley_vault_proxy.store import embedded_rows as rows
from galley_vault_proxy.store.keys import KeyPlace, alone, key_place
from galley_vault_proxy.store.names import check_ids, check_session, vault_name
from galley_vault_proxy.store.port import Engine, Lease, Material, SecretRef
from galley_vault_proxy.store.sealing import Keys, NotAuthentic, UnknownKey, derived, seal, unseal

T = TypeVar("T")

_SEALED: Final = "galley:v1:"
_TOKEN_BYTES: Final = 32
_BUSY_MS: Final = 2000
_SCHEMA: Final = Schema("secrets", rows.MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation of the key did."""

    key_id: str
    secrets: int


@dataclass(frozen=True, slots=True)
class _Session:
    vault_ids: frozenset[str]
    expires_at: datetime


class EmbeddedStore:
    """See `SecretStore`. Reads nothing from a cache: another process's write is seen at once."""

    def __init__(self, home: Path, state: State, place: KeyPlace, clock: Callable[[], datetime]) -> None:
        self._home = home
        self._state = state
        self._place = place
        self._clock = clock
        self._keys: Keys | None = None
        self._sessions: dict[str, _Session | None] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        home: Path,
        *,
        key: KeySource = "file",
        place: KeyPlace | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> AsyncIterator[Self]:
        """Open the store in `home`, making it first, and finish a rotation that was cut off. Raises ConfigError."""
        async with State.open(home / "secrets.db", [_SCHEMA]) as state:
            store = cls(home, state, place or key_place(home, key), clock)
            await store._open()
            yield store

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, expected: int | None) -> int:
        check_ids(ref.vault_id, ref.credential_id)
        plaintext = json.dumps({name: value.reveal() for name, value in fields.items()}).encode()

        def put(db: sqlite3.Connection, keys: Keys) -> int:
            current = rows.version(db, ref)
            if expected is not None and expected != current:
                raise VersionConflict(f"{ref.credential_id} is at version {current}, not {expected}: read it again")
            sealed = seal(keys.key(keys.active), plaintext, *_bound(ref, current + 1))
            rows.put(db, ref, current + 1, keys.active, sealed)
            return current + 1

        return await self._write(put)

    async def read(self, session_id: str, ref: SecretRef, *, fresh: bool = False) -> Material:
        check_ids(ref.vault_id, ref.credential_id)
        self._admit(session_id, ref.vault_id)
        return await self.read_own(ref)

    async def read_own(self, ref: SecretRef) -> Material:
        check_ids(ref.vault_id, ref.credential_id)
        found = await self._read(lambda db: rows.get(db, ref))
        if found is None:
            raise SecretMissing(f"{ref.credential_id} has no secret: it was never written, or was purged")
        plaintext = await self._unsealed(found.key_id, found.sealed, *_bound(ref, found.version))
        return Material({name: Secret(value) for name, value in json.loads(plaintext).items()}, found.version)

    async def purge(self, ref: SecretRef) -> None:
        check_ids(ref.vault_id, ref.credential_id)
        await self._write(lambda db, _: rows.purge(db, ref))
        await asyncio.to_thread(self._checkpoint)

    async def purge_vault(self, vault_id: str) -> None:
        vault_name(vault_id)
        await self._write(lambda db, _: rows.purge_vault(db, vault_id))
        await asyncio.to_thread(self._checkpoint)

    async def open_session(self, session_id: str, vault_ids: Collection[str], expires_at: datetime) -> None:
        check_session(session_id)
        for vault_id in vault_ids:
            vault_name(vault_id)
        self._sessions[session_id] = _Session(frozenset(vault_ids), expires_at)

    async def close_session(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)

    async def issue(
        self, session_id: str, vault_id: str, engine: Engine, role: str, params: Mapping[str, str]
    ) -> Lease:
        self._admit(session_id, vault_id)
        raise InvalidRequest(
            f"the embedded store issues no {engine} credentials: they need Vault or OpenBao (set VAULT_ADDR)"
        )

    async def seal(self, vault_id: str, plaintext: bytes) -> str:
        vault_name(vault_id)
        found = await self._read(rows.newest_sealing_key)
        if found is None:
            raise StoreUnavailable(f"{self._state.path} has no sealing key: put a copy of it back")
        key = await self._unsealed(found.key_id, found.sealed, "sealing key", found.id)
        sealed = seal(key, plaintext, "sealed", vault_id)
        return f"{_SEALED}{found.id}:{base64.urlsafe_b64encode(sealed).decode()}"

    async def unseal(self, vault_id: str, sealed: str) -> bytes:
        vault_name(vault_id)
        refused = InvalidRequest("this was not sealed here, or was sealed for another vault")
        key_id, _, text = sealed.removeprefix(_SEALED).partition(":")
        found = await self._read(lambda db: rows.sealing_key(db, key_id))
        if found is None or not sealed.startswith(_SEALED):
            raise refused
        key = await self._unsealed(found.key_id, found.sealed, "sealing key", found.id)
        try:
            return unseal(key, base64.urlsafe_b64decode(text), "sealed", vault_id)
        except (NotAuthentic, ValueError):
            raise refused from None

    async def wrap(self, session_id: str, ref: SecretRef, *, ttl_s: int) -> Secret:
        material = await self.read(session_id, ref)
        token = secrets.token_bytes(_TOKEN_BYTES)
        plaintext = json.dumps({name: value.reveal() for name, value in material.fields.items()}).encode()
        # Under a key that only the token gives: the file alone does not open it, and a rotation need not touch it.
        sealed = seal(derived(token, "wrap"), plaintext, *_bound(ref, material.version))
        now = self._clock().timestamp()
        await self._write(
            lambda db, _: rows.put_wrapped(db, _fingerprint(token), ref, material.version, sealed, now, now + ttl_s)
        )
        return Secret("wrap_" + base64.urlsafe_b64encode(token).decode().rstrip("="))

    async def unwrap(self, ref: SecretRef, token: Secret) -> Material:
        check_ids(ref.vault_id, ref.credential_id)
        refused = AccessRefused("this wrapping token is spent, has expired, or was not made for this credential")
        try:
            raw = base64.urlsafe_b64decode(token.reveal().removeprefix("wrap_") + "=")
        except ValueError:
            raise refused from None
        now = self._clock().timestamp()
        found = await self._write(lambda db, _: rows.take_wrapped(db, _fingerprint(raw), ref, now))
        if found is None:
            raise refused
        try:
            plaintext = unseal(derived(raw, "wrap"), found.sealed, *_bound(ref, found.version))
        except NotAuthentic:
            raise refused from None
        return Material({name: Secret(value) for name, value in json.loads(plaintext).items()}, found.version)

    async def ready(self) -> None:
        await self._read(rows.active_key)

    async def rotate(self) -> Rotation:
        """Seal everything anew under a new key, and forget the old one. Other processes may go on meanwhile.

        Cut off anywhere, it loses nothing: whoever opens the store next finishes it.
        """
        rotation = await asyncio.to_thread(self._begin_rotation)
        count = await self._finish_rotation(rotation)
        return Rotation(rotation.active, count)

    def _admit(self, session_id: str, vault_id: str) -> None:
        session = self._sessions.get(session_id)
        if session is None or session.expires_at <= self._clock():
            raise SessionClosed(f"{session_id} is closed: no secret is read for it")
        if vault_id not in session.vault_ids:
            raise AccessRefused(f"{vault_id} is not a vault of {session_id}")

    async def _open(self) -> None:
        active = await self._read(rows.active_key)
        keys = await asyncio.to_thread(self._load_or_make, new=active is None)
        self._keys = keys
        if active is not None and active not in keys.by_id:
            raise ConfigError(
                f"{self._place.name} does not hold the key of {self._state.path}: put a copy of the right one back"
            )
        await self._state.write(lambda db: rows.first_keys(db, keys))
        if len(keys.by_id) > 1:
            await self._finish_rotation(keys)

    def _load_or_make(self, *, new: bool) -> Keys:
        with alone(self._home):
            keys = self._place.load()
            if keys is None:
                if not new:
                    raise ConfigError(f"{self._place.name} is gone, and {self._state.path} needs it: put a copy back")
                keys = Keys.new()
                self._place.save(keys)
            return keys

    def _begin_rotation(self) -> Keys:
        with alone(self._home):
            kept = self._load()
            keys = kept.with_active(Keys.new())
            # Both keys are on the disk before anything is sealed with the new one.
            self._place.save(keys)
            return keys

    async def _finish_rotation(self, keys: Keys) -> int:
        self._keys = keys
        count = await self._state.write(lambda db: rows.reseal(db, keys))
        await asyncio.to_thread(self._end_rotation, keys.active)
        return count

    def _end_rotation(self, active: str) -> None:
        with alone(self._home):
            keys = self._load()
            # Somebody may have begun another rotation: then the end is theirs.
            if keys.active == active:
                self._checkpoint()
                self._place.save(keys.only_active())

    def _load(self) -> Keys:
        keys = self._place.load()
        if keys is None:
            raise StoreUnavailable(f"{self._place.name} is gone: put a copy of it back")
        return keys

    async def _reload(self) -> Keys:
        try:
            self._keys = await asyncio.to_thread(self._load)
        except ConfigError as error:
            raise StoreUnavailable(error.message) from None
        return self._keys

    async def _unsealed(self, key_id: str, sealed: bytes, *bound: str) -> bytes:
        keys = self._keys or await self._reload()
        if key_id not in keys.by_id:
            keys = await self._reload()  # another process has rotated
        try:
            return unseal(keys.key(key_id), sealed, *bound)
        except UnknownKey:
            raise StoreUnavailable(f"{self._place.name} lacks key {key_id}: put a copy of it back") from None
        except NotAuthentic:
            raise StoreUnavailable(f"{self._state.path} was changed by something else: put a copy of it back") from None

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._state.read(function)
        except Unavailable as error:
            raise StoreUnavailable(error.message) from None

    async def _write(self, function: Callable[[sqlite3.Connection, Keys], T]) -> T:
        """Run in a transaction, with the keys that are in force in it: what an old key seals would soon be lost."""
        keys = self._keys or await self._reload()
        for _ in range(3):
            try:
                return await self._state.write(lambda db, keys=keys: rows.with_keys(db, keys, function))  # type: ignore[misc]
            except rows.OtherKey:
                keys = await self._reload()
            except Unavailable as error:
                raise StoreUnavailable(error.message) from None
        raise StoreUnavailable("the store's key is being rotated: try again")

    def _checkpoint(self) -> None:
        """Bring the log's pages into the file and cut the log off, so that it holds no old ciphertext."""
        try:
            with closing(sqlite3.connect(self._state.path, timeout=_BUSY_MS / 1000, isolation_level=None)) as db:
                busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._state.path} cannot be cleaned: {error}; ask again") from None
        if busy:
            raise StoreUnavailable(f"{self._state.path} is too busy to be cleaned of what was removed: ask again")


def _bound(ref: SecretRef, version: int) -> tuple[str, ...]:
    return ("secret", ref.vault_id, ref.credential_id, str(version))


def _fingerprint(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()
