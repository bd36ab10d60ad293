"""What the proxy holds at Vault, in `state.db`: accessors of session tokens, entities of vaults, leases to be revoked.

Never a token. An accessor can end a token and do nothing else with it; it is kept from logs and answers all the same.
"""

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, LiteralString, TypeVar

from galley_vault_proxy.errors import StoreUnavailable, Unavailable
from galley_vault_proxy.state import Schema, State
from galley_vault_proxy.store.port import SecretRef

T = TypeVar("T")

SCHEMA: Final = Schema(
    "vault_leases",
    (
        """
        CREATE TABLE vault_accessors (
            accessor TEXT PRIMARY KEY,
            session_id TEXT NOT NULL,
            vault_id TEXT NOT NULL,
            expires_at REAL NOT NULL,
            doomed INTEGER NOT NULL DEFAULT 0
        ) STRICT;
        CREATE INDEX vault_accessors_by_session ON vault_accessors (session_id);
        CREATE TABLE vault_entities (
            vault_id TEXT PRIMARY KEY,
            entity_id TEXT NOT NULL,
            retired INTEGER NOT NULL DEFAULT 0
        ) STRICT;
        CREATE TABLE vault_late_leases (lease_id TEXT PRIMARY KEY, expires_at REAL NOT NULL) STRICT;
        CREATE TABLE vault_writes (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            vault_id TEXT NOT NULL,
            credential_id TEXT NOT NULL,
            writer TEXT NOT NULL,
            at REAL NOT NULL
        ) STRICT;
        """,
    ),
)


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """A session token of ours at Vault, by its accessor."""

    accessor: str
    session_id: str
    vault_id: str


@dataclass(frozen=True, slots=True)
class Entity:
    """The identity that Vault made for a vault at its first token."""

    vault_id: str
    entity_id: str
    retired: bool


@dataclass(frozen=True, slots=True, repr=False)
class Leftovers:
    """What is still to be revoked."""

    accessors: tuple[str, ...]
    lease_ids: tuple[str, ...]


class Leases:
    """Every call raises StoreUnavailable when the state cannot be read or written. Times are wall-clock seconds."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._me = secrets.token_hex(8)

    async def add(self, held: Held, entity_id: str, expires_at: float) -> str:
        """Record a token; return the entity that the vault is known to have: the first one ever recorded."""

        def work(db: sqlite3.Connection) -> str:
            db.execute(
                "INSERT OR IGNORE INTO vault_entities (vault_id, entity_id) VALUES (?, ?)", (held.vault_id, entity_id)
            )
            db.execute(
                "INSERT OR REPLACE INTO vault_accessors (accessor, session_id, vault_id, expires_at)"
                " VALUES (?, ?, ?, ?)",
                (held.accessor, held.session_id, held.vault_id, expires_at),
            )
            query = "SELECT entity_id FROM vault_entities WHERE vault_id = ?"
            return str(db.execute(query, (held.vault_id,)).fetchone()[0])

        return await self._write(work)

    async def renewed(self, accessor: str, expires_at: float) -> None:
        await self._write(
            lambda db: (
                db.execute(
                    "UPDATE vault_accessors SET expires_at = ? WHERE accessor = ?", (expires_at, accessor)
                ).rowcount
            )
        )

    async def doom(self, accessor: str) -> None:
        """It is to be revoked; whoever issued something through it must revoke that too."""
        await self._write(
            lambda db: db.execute("UPDATE vault_accessors SET doomed = 1 WHERE accessor = ?", (accessor,)).rowcount
        )

    async def doom_session(self, session_id: str) -> list[str]:
        return await self._doom_where("session_id", session_id)

    async def doom_vault(self, vault_id: str) -> list[str]:
        return await self._doom_where("vault_id", vault_id)

    async def lives(self, accessor: str) -> bool:
        """Whether nobody has set out to revoke it, in any process."""
        query = "SELECT 1 FROM vault_accessors WHERE accessor = ? AND doomed = 0"
        return await self._read(lambda db: db.execute(query, (accessor,)).fetchone() is not None)

    async def remove(self, accessor: str) -> None:
        await self._write(lambda db: db.execute("DELETE FROM vault_accessors WHERE accessor = ?", (accessor,)).rowcount)

    async def add_late_lease(self, lease_id: str, expires_at: float) -> None:
        await self._write(
            lambda db: (
                db.execute("INSERT OR REPLACE INTO vault_late_leases VALUES (?, ?)", (lease_id, expires_at)).rowcount
            )
        )

    async def remove_late_lease(self, lease_id: str) -> None:
        await self._write(
            lambda db: db.execute("DELETE FROM vault_late_leases WHERE lease_id = ?", (lease_id,)).rowcount
        )

    async def leftovers(self) -> Leftovers:
        def work(db: sqlite3.Connection) -> Leftovers:
            accessors = db.execute("SELECT accessor FROM vault_accessors WHERE doomed = 1").fetchall()
            leases = db.execute("SELECT lease_id FROM vault_late_leases").fetchall()
            return Leftovers(tuple(row[0] for row in accessors), tuple(row[0] for row in leases))

        return await self._read(work)

    async def sweep(self, now: float, writes_before: float) -> None:
        """Forget what has ended by itself."""

        def any_over(db: sqlite3.Connection) -> bool:
            query = (
                "SELECT EXISTS (SELECT 1 FROM vault_accessors WHERE expires_at < ?)"
                " OR EXISTS (SELECT 1 FROM vault_late_leases WHERE expires_at < ?)"
                " OR EXISTS (SELECT 1 FROM vault_writes WHERE at < ?)"
            )
            return bool(db.execute(query, (now, now, writes_before)).fetchone()[0])

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM vault_accessors WHERE expires_at < ?", (now,))
            db.execute("DELETE FROM vault_late_leases WHERE expires_at < ?", (now,))
            db.execute("DELETE FROM vault_writes WHERE at < ?", (writes_before,))

        if await self._read(any_over):
            await self._write(work)

    async def retire(self, vault_id: str) -> None:
        """The vault is gone. Its entity is the operator's to delete: the proxy's own token may not."""
        await self._write(
            lambda db: db.execute("UPDATE vault_entities SET retired = 1 WHERE vault_id = ?", (vault_id,)).rowcount
        )

    async def entities(self) -> list[Entity]:
        query = "SELECT vault_id, entity_id, retired FROM vault_entities ORDER BY vault_id"
        rows = await self._read(lambda db: db.execute(query).fetchall())
        return [Entity(vault_id, entity_id, bool(retired)) for vault_id, entity_id, retired in rows]

    async def forget_entity(self, vault_id: str) -> None:
        await self._write(lambda db: db.execute("DELETE FROM vault_entities WHERE vault_id = ?", (vault_id,)).rowcount)

    async def accessors(self) -> frozenset[str]:
        rows = await self._read(lambda db: db.execute("SELECT accessor FROM vault_accessors").fetchall())
        return frozenset(row[0] for row in rows)

    async def wrote(self, ref: SecretRef, at: float) -> None:
        """Tell the processes that share the state that a secret was written or purged."""
        await self._write(
            lambda db: (
                db.execute(
                    "INSERT INTO vault_writes (vault_id, credential_id, writer, at) VALUES (?, ?, ?, ?)",
                    (ref.vault_id, ref.credential_id, self._me, at),
                ).rowcount
            )
        )

    async def last_write(self) -> int:
        query = "SELECT coalesce(max(number), 0) FROM vault_writes"
        return await self._read(lambda db: int(db.execute(query).fetchone()[0]))

    async def writes_after(self, number: int) -> tuple[int, list[SecretRef]]:
        """What the others wrote since, and the number to go on from."""
        query = "SELECT number, vault_id, credential_id, writer FROM vault_writes WHERE number > ? ORDER BY number"
        rows = await self._read(lambda db: db.execute(query, (number,)).fetchall())
        refs = [SecretRef(vault_id, credential_id) for _, vault_id, credential_id, by in rows if by != self._me]
        return (rows[-1][0] if rows else number), refs

    async def version(self) -> int:
        """Another number after every write to the state."""
        try:
            return await self._state.version()
        except Unavailable as error:
            raise StoreUnavailable(error.message) from None

    async def _doom_where(self, column: Literal["session_id", "vault_id"], value: str) -> list[str]:
        dooming: LiteralString = f"UPDATE vault_accessors SET doomed = 1 WHERE {column} = ? AND doomed = 0"
        query: LiteralString = f"SELECT accessor FROM vault_accessors WHERE {column} = ?"

        def work(db: sqlite3.Connection) -> list[str]:
            db.execute(dooming, (value,))
            return [row[0] for row in db.execute(query, (value,)).fetchall()]

        found = await self._read(lambda db: db.execute(query, (value,)).fetchall())
        return await self._write(work) if found else []

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._state.read(work)
        except Unavailable as error:
            raise StoreUnavailable(error.message) from None

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._state.write(work)
        except Unavailable as error:
            raise StoreUnavailable(error.message) from None
