"""The threads that own SQLite connections: one that writes in group commits, a few that read."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeVar

from galley_server.errors import ConfigError, GalleyError, Unavailable
from galley_server.log.connection import connect_reader, connect_writer
from galley_server.log.faults import is_damage, is_fault, unavailable

T = TypeVar("T")

# In units of `linger`: when even a crowd that keeps coming is no longer waited for.
_MOST_LINGERS: Final = 10


class Job(Generic[T]):
    """One function to run on a connection, and the future that waits for it.

    Made and settled on the event loop; in between it belongs to one thread.
    """

    __slots__ = ("_committed", "_error", "_function", "_ran", "_result", "future", "writes")

    def __init__(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        writes: bool,
        committed: Callable[[T], None] | None = None,
    ) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.writes = writes
        self._function = function
        self._committed = committed
        self._result: T
        self._ran = False
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        return self._error is not None

    def run(self, connection: sqlite3.Connection) -> None:
        self._result = self._function(connection)
        self._ran = True

    def fail(self, error: BaseException) -> None:
        self._error = error

    def settle(self) -> None:
        """Tell whoever waits. `committed` is called even when nobody waits any more: the write has happened."""
        if self._ran and self._error is None and self._committed is not None:
            try:
                self._committed(self._result)
            except Exception as error:  # the boundary between one job and the others of its batch
                self.future.get_loop().call_exception_handler(
                    {"message": "a callback after a commit failed", "exception": error, "future": self.future}
                )
        if self.future.done():
            return
        if self._error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._error)


class Handler(Protocol):
    """What a worker does with its jobs. Both methods run on the worker's thread."""

    def work(self, batch: "Sequence[Job[Any]]") -> None:
        """Run or fail every job of the batch. Must not raise."""
        ...

    def close(self) -> None: ...


class Worker:
    """A thread that hands jobs from a queue to its handler, at most `most` at a time, until it finds None there."""

    def __init__(
        self, queue: "SimpleQueue[Job[Any] | None]", handler: Handler, *, name: str, most: int = 1, linger: float = 0.0
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._most = most
        self._linger = linger
        self._expected = 1
        self._settled_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def ended(self) -> None:
        await self._ended.wait()

    def _run(self) -> None:
        try:
            more = True
            while more:
                batch, more = self._take()
                self._handler.work(batch)
                self._loop.call_soon_threadsafe(_settle, batch)
                self._expected, self._settled_at = len(batch) + self._queue.qsize(), time.monotonic()
                del batch  # else an idle thread would hold on to what the last jobs returned
        finally:
            self._handler.close()
            self._loop.call_soon_threadsafe(self._ended.set)

    def _take(self) -> "tuple[list[Job[Any]], bool]":
        """Wait for a job, then take what else is there: what arrives during one commit shares the next.

        Those whom the last commit has just answered tend to ask again at once. Without a moment's patience for them a
        crowd falls apart into two halves that commit in turns, at half the rate; so right after a commit they are
        awaited, while each comes within `linger` of the one before. One lonely writer never waits.
        """
        batch: list[Job[Any]] = []
        job = self._queue.get()
        now = time.monotonic()
        deadline = now + _MOST_LINGERS * self._linger
        crowded = now - self._settled_at < self._linger
        while job is not None:
            batch.append(job)
            if len(batch) == self._most:
                return batch, True
            wait = crowded and len(batch) < self._expected and time.monotonic() < deadline
            try:
                job = self._queue.get(timeout=self._linger) if wait else self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False


def _settle(batch: "Sequence[Job[Any]]") -> None:
    for job in batch:
        job.settle()


class Trust:
    """Shared by the connections to one file: when one of them meets a fault of the file, all are opened again."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0


class Writer:
    """Owns the connection that writes. A batch is one transaction, and each job in it one savepoint.

    So one job's failure undoes that job alone, while a failure of the store (disk full, I/O error, damage) undoes the
    batch, and every job of it learns that. For a store in memory, which has one connection, it reads as well.
    """

    def __init__(self, path: Path | None, trust: Trust) -> None:
        self._path = path
        self._name = ":memory:" if path is None else path.name
        self._trust = trust
        self._generation = 0
        self._known = False
        self._connection: sqlite3.Connection | None = None

    def work(self, batch: "Sequence[Job[Any]]") -> None:
        # A job whose caller has gone before it was begun need not be done.
        writes = [job for job in batch if job.writes and not job.future.cancelled()]
        try:
            connection = self._connected()
            if writes:
                self._commit(connection, writes)
            for job in batch:
                if not job.writes:
                    _read_in_memory(connection, job)
        except sqlite3.Error as error:
            self._recover(error)
            _fail_all(batch, unavailable(error, name=self._name))
        except OSError as error:
            _fail_all(batch, Unavailable(f"nothing was stored: {self._name} cannot be opened: {error.strerror}"))
        except GalleyError as error:
            _fail_all(batch, error)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        if self._generation != self._trust.generation:
            self.close()
        if self._connection is None:
            self._generation = self._trust.generation
            try:
                self._connection = connect_writer(self._path, create=not self._known)
            except ConfigError as error:
                if not self._known:
                    raise
                raise Unavailable(error.message) from error
            self._known = True
        return self._connection

    def _commit(self, connection: sqlite3.Connection, jobs: "Sequence[Job[Any]]") -> None:
        connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                job.run(connection)
            except Exception as error:  # the boundary between one job and the others of its batch
                if is_fault(error):
                    raise
                connection.execute("ROLLBACK TO job")
                job.fail(error)
            connection.execute("RELEASE job")
        connection.execute("COMMIT")

    def _recover(self, error: sqlite3.Error) -> None:
        connection = self._connection
        if connection is None:
            return
        if is_damage(error):
            self._trust.generation += 1
            self.close()
            return
        try:
            # SQLite has itself rolled back after some faults, and not after others.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()


class Reader:
    """Owns one connection that reads. Each job sees one snapshot."""

    def __init__(self, path: Path, trust: Trust) -> None:
        self._path = path
        self._trust = trust
        self._generation = 0
        self._connection: sqlite3.Connection | None = None

    def work(self, batch: "Sequence[Job[Any]]") -> None:
        for job in batch:
            if not job.future.cancelled():
                self._read(job)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _read(self, job: "Job[Any]") -> None:
        try:
            connection = self._connected()
            connection.execute("BEGIN")
            try:
                job.run(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except Exception as error:  # the boundary of a job: what it raises belongs to its caller
            if isinstance(error, sqlite3.Error) and is_fault(error):
                self.close()
                if is_damage(error):
                    self._trust.generation += 1
                job.fail(unavailable(error, name=self._path.name))
            else:
                job.fail(error)

    def _connected(self) -> sqlite3.Connection:
        if self._generation != self._trust.generation:
            self.close()
        if self._connection is None:
            self._generation = self._trust.generation
            self._connection = connect_reader(self._path)
        return self._connection


def _read_in_memory(connection: sqlite3.Connection, job: "Job[Any]") -> None:
    connection.execute("PRAGMA query_only = ON")
    try:
        job.run(connection)
    except Exception as error:  # the boundary of a job: what it raises belongs to its caller
        job.fail(error)
    finally:
        connection.execute("PRAGMA query_only = OFF")


def _fail_all(batch: "Sequence[Job[Any]]", error: GalleyError) -> None:
    """Nothing of this batch was stored. Each caller gets an exception of its own: a shared one would mix tracebacks."""
    for job in batch:
        if not job.failed:
            job.fail(copy(error))
