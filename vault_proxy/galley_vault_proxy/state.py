"""The proxy's one SQLite file, `state.db`: durable writes, reads beside them, a number that tells of others' writes.

Each component brings its own tables as numbered migrations. A secret or a token never goes in here.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString, Self, TypeVar

from galley_vault_proxy.errors import ConfigError, Unavailable

T = TypeVar("T")

_BUSY_S: Final = 5.0
_VERSIONS: Final = """
    CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one component. Each migration is one or more statements; a released one is never edited."""

    component: str
    migrations: tuple[LiteralString, ...]


class State:
    """One SQLite file that several processes may share.

    Both calls take a plain function of a connection and run it on a thread:

        def count(db: sqlite3.Connection) -> int:
            return db.execute("SELECT count(*) FROM grants").fetchone()[0]

        found = await state.read(count)

    The function must touch nothing but the connection, must not begin or end a transaction, and should be quick.
    When the disk is full, read-only or broken, a call raises Unavailable and nothing has happened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _Connection(path, name="galley-state-writer", readonly=False)
        self._reader = _Connection(path, name="galley-state-reader", readonly=True)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, schemas: Sequence[Schema]) -> AsyncIterator[Self]:
        """Open the file, making it (0600) or bringing it up to date first. Raises ConfigError."""
        state = cls(path)
        try:
            await state._writer.run(lambda db: _migrate(db, path, schemas))
            yield state
        finally:
            await state._reader.close()
            await state._writer.close()

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a transaction, and return what it returned once that is on the disk.

        What it raises is raised here, and nothing of it is kept. A cancelled write may or may not happen.
        """

        def whole(db: sqlite3.Connection) -> T:
            with _transaction(db):
                return function(db)

        return await self._writer.run(whole)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that reads; it sees every write acknowledged before the call, on one snapshot."""

        def whole(db: sqlite3.Connection) -> T:
            db.execute("BEGIN")
            try:
                return function(db)
            finally:
                db.execute("COMMIT")

        return await self._reader.run(whole)

    async def version(self) -> int:
        """A number that is another one after every write, of this process or another."""
        return await self._reader.run(lambda db: int(db.execute("PRAGMA data_version").fetchone()[0]))


class _Connection:
    """One connection on one thread of its own, opened at its first use."""

    def __init__(self, path: Path, *, name: str, readonly: bool) -> None:
        self._path = path
        self._readonly = readonly
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._db: sqlite3.Connection | None = None

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, function)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        self._thread.shutdown(wait=False)

    def _work(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._db is None:
                self._db = _connect(self._path, readonly=self._readonly)
            return function(self._db)
        except sqlite3.Error as error:
            # What the connection saw of a full or broken disk must not stick to it.
            self._end()
            raise Unavailable(f"the state in {self._path} cannot be used: {error}") from None

    def _end(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    if not readonly:
        # SQLite makes its side files with the mode of the database, so the mode must be right before it opens it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        path.chmod(0o600)
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if not readonly:
            db.execute("PRAGMA journal_mode=WAL")
        # FULL: what was acknowledged, a revocation above all, is there after a power cut too.
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("PRAGMA trusted_schema=OFF")
        if readonly:
            db.execute("PRAGMA query_only=ON")
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _migrate(db: sqlite3.Connection, path: Path, schemas: Sequence[Schema]) -> None:
    try:
        with _transaction(db):
            db.execute(_VERSIONS)
            have = dict(db.execute("SELECT component, version FROM schema_versions").fetchall())
            for schema in schemas:
                _bring_up(db, path, schema, have.get(schema.component, 0))
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path} is not a state file of the vault proxy: {error}; move it away") from None


def _bring_up(db: sqlite3.Connection, path: Path, schema: Schema, have: int) -> None:
    if have > len(schema.migrations):
        raise ConfigError(f"{path} was written by a newer galley-vault-proxy: start that one, or set another home")
    for migration in schema.migrations[have:]:
        for statement in _statements(migration):
            db.execute(statement)
    db.execute(
        "INSERT INTO schema_versions VALUES (?, ?) ON CONFLICT (component) DO UPDATE SET version = excluded.version",
        (schema.component, len(schema.migrations)),
    )


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction first."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        yield pending
