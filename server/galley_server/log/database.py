"""The store's one SQLite file: durable writes in group commits, consistent reads beside them."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal, Self, TypeVar

from galley_server.errors import Unavailable
from galley_server.log.worker import Job, Reader, Trust, Worker, Writer

T = TypeVar("T")

# Bounds how long the first of a batch waits for the last. A write takes some 50 microseconds.
_MAX_BATCH: Final = 256
_LINGER_S: Final = 0.0003
_MAX_READERS: Final = 3
_CLOSING_TIMEOUT_S: Final = 10.0


class Database:
    """One SQLite file, or a private one in memory with the same SQL and the same triggers.

    Both calls take a plain function of a connection and run it on a thread:

        def rename(connection: sqlite3.Connection) -> int:
            return connection.execute("UPDATE agents SET name = ? WHERE id = ?", (name, id)).rowcount

        changed = await database.write(rename)

    The function must touch nothing but the connection, must not begin or end a transaction, and should be quick: all
    writers wait for it. What it raises is raised to its caller, and only its own changes are undone.

    When the disk is full, read-only or broken, every call raises Unavailable and nothing has happened; the next call
    tries anew, opening the file again if need be. Tables come from the numbered files in `migrations/`.
    """

    def __init__(self, path: Path | None, *, readonly: bool) -> None:
        self.path = path
        self._closed = False
        self._trust = Trust()
        self._writes: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._reads: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._readers: list[Worker] = []
        self._reading = 0
        self._writer = (
            None
            if readonly
            else Worker(
                self._writes, Writer(path, self._trust), name="galley-store-writer", most=_MAX_BATCH, linger=_LINGER_S
            )
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path | Literal[":memory:"], *, readonly: bool = False) -> AsyncIterator[Self]:
        """Open the store, making it or bringing it up to date first unless `readonly`.

        `readonly` is for looking at a store beside the server that owns it. Raises ConfigError when the file is not
        a Galley store or is newer than this Galley, Unavailable when it cannot be opened.
        """
        database = cls(None if isinstance(path, str) else path, readonly=readonly)
        try:
            await (database.read(_nothing) if readonly else database.write(_nothing))
            yield database
        finally:
            await database._close()

    async def write(
        self, function: Callable[[sqlite3.Connection], T], *, committed: Callable[[T], None] | None = None
    ) -> T:
        """Run a function in a transaction, and return what it returned once that is durable.

        Writes of the same moment share one transaction and one fsync; they run in the order of the calls.
        A cancelled write may or may not happen; `committed` is called on the event loop whenever it did.
        """
        if self._writer is None:
            raise Unavailable("nothing was stored: this store was opened only to be read")
        return await self._submit(self._writes, Job(function, writes=True, committed=committed))

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that reads, on one snapshot; it sees every write acknowledged before the call."""
        if self.path is None:
            return await self._submit(self._writes, Job(function, writes=False))
        self._reading += 1
        if self._reading > len(self._readers) < _MAX_READERS:
            reader = Reader(self.path, self._trust)
            self._readers.append(Worker(self._reads, reader, name="galley-store-reader"))
        try:
            return await self._submit(self._reads, Job(function, writes=False))
        finally:
            self._reading -= 1

    async def _submit(self, queue: SimpleQueue[Job[Any] | None], job: Job[T]) -> T:
        if self._closed:
            raise Unavailable("nothing was stored: the server is stopping")
        queue.put(job)
        return await job.future

    async def _close(self) -> None:
        """Finish what was accepted, then end the threads; they close their connections."""
        self._closed = True
        workers = list(self._readers)
        if self._writer is not None:
            self._writes.put(None)
            workers.append(self._writer)
        for _ in self._readers:
            self._reads.put(None)
        async with asyncio.timeout(_CLOSING_TIMEOUT_S):
            for worker in workers:
                await worker.ended()


def _nothing(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT 1")
