"""Vaults, credentials and what is still to be purged, in `state.db`. Everything but the secrets.

Every function is of a connection and runs inside the caller's transaction.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from galley_vault_proxy.credentials.placeholders import Placeholder
from galley_vault_proxy.credentials.shapes import AuthShown, Credential, OAuthShown, Vault, match_key
from galley_vault_proxy.grant.token import milliseconds, moment
from galley_vault_proxy.state import Schema
from galley_vault_proxy.store.port import SecretRef

SCHEMA: Final = Schema(
    "credentials",
    (
        """
CREATE TABLE vaults (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;
CREATE TABLE credentials (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    vault_id TEXT NOT NULL REFERENCES vaults (id) ON DELETE CASCADE,
    match_key TEXT NOT NULL,
    display_name TEXT,
    metadata TEXT NOT NULL,
    auth TEXT NOT NULL,
    placeholder TEXT,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;
CREATE UNIQUE INDEX living_credentials ON credentials (vault_id, match_key) WHERE archived_at IS NULL;
CREATE INDEX credentials_of_vault ON credentials (vault_id, n);
CREATE TABLE purges (
    vault_id TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    due_at INTEGER NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (vault_id, credential_id)
) STRICT;
CREATE TABLE credential_changes (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    vault_id TEXT NOT NULL
) STRICT;
CREATE TABLE credential_answers (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    answer BLOB NOT NULL,
    at INTEGER NOT NULL
) STRICT;
""",
    ),
)

WHOLE_VAULT: Final = ""
"""In place of a credential's id in `purges`."""

_CHANGES_KEPT: Final = 10_000
_AUTH: Final[TypeAdapter[AuthShown]] = TypeAdapter(AuthShown)
_VAULT: Final = "n, id, display_name, metadata, created_at, updated_at, archived_at"
_CREDENTIAL: Final = (
    "n, id, vault_id, auth, display_name, metadata, created_at, updated_at, archived_at, version, placeholder"
)


@dataclass(frozen=True, slots=True)
class StoredVault:
    n: int
    shown: Vault


@dataclass(frozen=True, slots=True)
class Stored:
    """A credential, and what is not shown of it. `version`: the newest version of its secret that we know of."""

    n: int
    shown: Credential
    version: int
    placeholder: Placeholder | None

    @property
    def ref(self) -> SecretRef:
        return SecretRef(self.shown.vault_id, self.shown.id)


def vault(db: sqlite3.Connection, vault_id: str) -> StoredVault | None:
    row = db.execute(f"SELECT {_VAULT} FROM vaults WHERE id = ?", (vault_id,)).fetchone()
    return None if row is None else _vault(row)


def vaults(db: sqlite3.Connection, *, before: int | None, limit: int, archived: bool) -> list[StoredVault]:
    """Newest first."""
    rows = db.execute(
        f"SELECT {_VAULT} FROM vaults WHERE n < ? AND (? OR archived_at IS NULL) ORDER BY n DESC LIMIT ?",
        (_below(before), archived, limit),
    )
    return [_vault(row) for row in rows]


def add_vault(db: sqlite3.Connection, new: Vault) -> None:
    db.execute(
        "INSERT INTO vaults (id, display_name, metadata, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
        (new.id, new.display_name, _json(new.metadata), milliseconds(new.created_at), milliseconds(new.updated_at)),
    )


def put_vault(db: sqlite3.Connection, changed: Vault) -> None:
    db.execute(
        "UPDATE vaults SET display_name = ?, metadata = ?, updated_at = ?, archived_at = ? WHERE id = ?",
        (
            changed.display_name,
            _json(changed.metadata),
            milliseconds(changed.updated_at),
            _optional(changed.archived_at),
            changed.id,
        ),
    )


def delete_vault(db: sqlite3.Connection, vault_id: str) -> bool:
    """With its credentials. False when there is none."""
    _change(db, vault_id)
    return db.execute("DELETE FROM vaults WHERE id = ?", (vault_id,)).rowcount > 0


def credential(db: sqlite3.Connection, credential_id: str) -> Stored | None:
    row = db.execute(f"SELECT {_CREDENTIAL} FROM credentials WHERE id = ?", (credential_id,)).fetchone()
    return None if row is None else _stored(row)


def credentials(
    db: sqlite3.Connection, vault_id: str, *, before: int | None, limit: int, archived: bool
) -> list[Stored]:
    """Newest first."""
    rows = db.execute(
        f"SELECT {_CREDENTIAL} FROM credentials WHERE vault_id = ? AND n < ? AND (? OR archived_at IS NULL) "
        "ORDER BY n DESC LIMIT ?",
        (vault_id, _below(before), archived, limit),
    )
    return [_stored(row) for row in rows]


def living(db: sqlite3.Connection, vault_id: str) -> list[Stored]:
    """The credentials of a vault that are not archived, oldest first."""
    rows = db.execute(
        f"SELECT {_CREDENTIAL} FROM credentials WHERE vault_id = ? AND archived_at IS NULL ORDER BY n", (vault_id,)
    )
    return [_stored(row) for row in rows]


def holder(db: sqlite3.Connection, vault_id: str, key: str) -> str | None:
    """The living credential that has this key."""
    row = db.execute(
        "SELECT id FROM credentials WHERE vault_id = ? AND match_key = ? AND archived_at IS NULL", (vault_id, key)
    ).fetchone()
    return None if row is None else str(row[0])


def count(db: sqlite3.Connection, vault_id: str) -> int:
    """How many credentials of a vault live."""
    found = db.execute("SELECT count(*) FROM credentials WHERE vault_id = ? AND archived_at IS NULL", (vault_id,))
    return _int(found.fetchone()[0])


def add_credential(db: sqlite3.Connection, new: Credential, version: int, placeholder: Placeholder | None) -> None:
    db.execute(
        "INSERT INTO credentials (id, vault_id, match_key, display_name, metadata, auth, placeholder, version, "
        "created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            new.id,
            new.vault_id,
            match_key(new.auth),
            new.display_name,
            _json(new.metadata),
            new.auth.model_dump_json(),
            None if placeholder is None else placeholder.text(),
            version,
            milliseconds(new.created_at),
            milliseconds(new.updated_at),
        ),
    )
    _change(db, new.vault_id)


def put_credential(db: sqlite3.Connection, changed: Credential, version: int) -> None:
    """`version` counts only if it is newer than what is known."""
    db.execute(
        "UPDATE credentials SET display_name = ?, metadata = ?, auth = ?, version = max(version, ?), updated_at = ?, "
        "archived_at = ? WHERE id = ?",
        (
            changed.display_name,
            _json(changed.metadata),
            changed.auth.model_dump_json(),
            version,
            milliseconds(changed.updated_at),
            _optional(changed.archived_at),
            changed.id,
        ),
    )
    _change(db, changed.vault_id)


def note_version(db: sqlite3.Connection, credential_id: str, version: int, expires_at: datetime | None) -> None:
    """The secret has a newer version than is known; `expires_at` is the end of the token in it."""
    found = credential(db, credential_id)
    if found is None or found.version >= version or not isinstance(found.shown.auth, OAuthShown):
        return
    auth = OAuthShown.model_validate(found.shown.auth.model_copy(update={"expires_at": expires_at}).model_dump())
    db.execute(
        "UPDATE credentials SET auth = ?, version = ? WHERE id = ?", (auth.model_dump_json(), version, credential_id)
    )
    _change(db, found.shown.vault_id)


def delete_credential(db: sqlite3.Connection, vault_id: str, credential_id: str) -> bool:
    _change(db, vault_id)
    return db.execute("DELETE FROM credentials WHERE id = ?", (credential_id,)).rowcount > 0


def owe_purge(db: sqlite3.Connection, ref: SecretRef, due_at: datetime) -> None:
    """Note a secret that must not stay. A due date in the future is for one that is about to be written."""
    db.execute(
        "INSERT INTO purges (vault_id, credential_id, due_at) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET due_at = min(due_at, excluded.due_at)",
        (ref.vault_id, ref.credential_id, milliseconds(due_at)),
    )


def keep(db: sqlite3.Connection, ref: SecretRef) -> bool:
    """The secret that was about to be written is wanted. False: too late, it is being purged."""
    return (
        db.execute(
            "DELETE FROM purges WHERE vault_id = ? AND credential_id = ? AND taken = 0",
            (ref.vault_id, ref.credential_id),
        ).rowcount
        > 0
    )


def give_up(db: sqlite3.Connection, ref: SecretRef) -> bool:
    """The secret that was to be written is not wanted. False: it is wanted already, or somebody else purges it."""
    return (
        db.execute(
            "UPDATE purges SET taken = 1 WHERE vault_id = ? AND credential_id = ? AND taken = 0",
            (ref.vault_id, ref.credential_id),
        ).rowcount
        > 0
    )


def owed(db: sqlite3.Connection, now: datetime, *, limit: int, vault_id: str | None = None) -> list[SecretRef]:
    """What is to be purged now, of one vault or of all."""
    rows = db.execute(
        "SELECT vault_id, credential_id FROM purges WHERE due_at <= ? AND (? IS NULL OR vault_id = ?) "
        "ORDER BY due_at LIMIT ?",
        (milliseconds(now), vault_id, vault_id, limit),
    )
    return [SecretRef(*row) for row in rows]


def is_owed(db: sqlite3.Connection, ref: SecretRef) -> bool:
    return (
        db.execute(
            "SELECT 1 FROM purges WHERE vault_id = ? AND credential_id = ?", (ref.vault_id, ref.credential_id)
        ).fetchone()
        is not None
    )


def take_purge(db: sqlite3.Connection, ref: SecretRef) -> None:
    """From here on it cannot be kept."""
    db.execute(
        "UPDATE purges SET taken = 1 WHERE vault_id = ? AND credential_id = ?", (ref.vault_id, ref.credential_id)
    )


def purged(db: sqlite3.Connection, ref: SecretRef) -> None:
    if ref.credential_id == WHOLE_VAULT:
        db.execute("DELETE FROM purges WHERE vault_id = ?", (ref.vault_id,))
    db.execute("DELETE FROM purges WHERE vault_id = ? AND credential_id = ?", (ref.vault_id, ref.credential_id))


def changes(db: sqlite3.Connection, after: int) -> tuple[int, frozenset[str] | None]:
    """The last change's number, and the vaults changed since `after`; None when that is too long ago to know."""
    first, last = db.execute("SELECT min(n), max(n) FROM credential_changes").fetchone()
    if last is None or last <= after:
        return (after, frozenset())
    if first > after + 1:
        return (int(last), None)
    rows = db.execute("SELECT DISTINCT vault_id FROM credential_changes WHERE n > ?", (after,))
    return (int(last), frozenset(row[0] for row in rows))


def _change(db: sqlite3.Connection, vault_id: str) -> None:
    n = db.execute("INSERT INTO credential_changes (vault_id) VALUES (?)", (vault_id,)).lastrowid or 0
    db.execute("DELETE FROM credential_changes WHERE n <= ?", (n - _CHANGES_KEPT,))


def _vault(row: Sequence[object]) -> StoredVault:
    n, id_, name, metadata, created, updated, archived = row
    return StoredVault(
        _int(n),
        Vault(
            id=str(id_),
            display_name=str(name),
            metadata=json.loads(str(metadata)),
            created_at=moment(_int(created)),
            updated_at=moment(_int(updated)),
            archived_at=_moment(archived),
        ),
    )


def _stored(row: Sequence[object]) -> Stored:
    n, id_, vault_id, auth, name, metadata, created, updated, archived, version, placeholder = row
    return Stored(
        _int(n),
        Credential(
            id=str(id_),
            vault_id=str(vault_id),
            auth=_AUTH.validate_json(str(auth)),
            display_name=None if name is None else str(name),
            metadata=json.loads(str(metadata)),
            created_at=moment(_int(created)),
            updated_at=moment(_int(updated)),
            archived_at=_moment(archived),
        ),
        _int(version),
        None if placeholder is None else Placeholder.of(str(placeholder)),
    )


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _moment(value: object) -> datetime | None:
    return None if value is None else moment(_int(value))


def _optional(at: datetime | None) -> int | None:
    return None if at is None else milliseconds(at)


def _json(bag: Mapping[str, str]) -> str:
    return json.dumps(bag, ensure_ascii=False, separators=(",", ":"))


def _below(before: int | None) -> int:
    return (1 << 62) if before is None else before
