"""The store's port: what every back end of the log promises. No I/O here."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

from galley_server.log.answers import Remembered
from galley_server.log.row import Draft, Head, Row, Tombstone

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Grown:
    """Rows were added and are durable. `rows` is empty when another process added them: then they must be read."""

    session_id: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Deleted:
    session_id: str


Notice: TypeAlias = Grown | Deleted
Watcher: TypeAlias = Callable[[Notice], None]


@dataclass(frozen=True, slots=True)
class SummaryColumns:
    """What lists filter and sort by."""

    status: str
    agent_id: str
    agent_version: int
    created_at: datetime
    archived: bool


Guard: TypeAlias = Callable[[SummaryColumns], None]
"""Raises if the session, as it is in the transaction, must not be changed so. Pure; it runs on the store's thread."""


class Rows(Protocol):
    """Append-only, one gap-free sequence of rows per session.

    Whatever an awaited call has returned is durable. A call that raises has done nothing; a call that is cancelled may
    or may not have been carried out. Every call on a session that does not exist, or was deleted, raises NotFound;
    every call raises Unavailable while the store cannot acknowledge anything, and works again when that clears.
    """

    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        fence: int | None = None,
        expected: int | None = None,
        guard: Guard | None = None,
        remember: Remembered | None = None,
    ) -> list[Row]:
        """Add all drafts, or none, as one step. `expected=0` begins the session and is the only way to begin it.

        Raises AppendConflict unless `expected`, if given, is the session's last position, LeaseLost unless `fence`,
        if given, is its newest epoch, and whatever `guard` raises for a session that exists. `remember` is kept in
        the same step; AlreadyAnswered if its key was taken before.
        """
        ...

    async def read(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
        types: Collection[str] | None = None,
        newest_first: bool = False,
    ) -> list[Row]:
        """Return the rows with `after < seq < before`, only of `types` if given, at most `limit`, in the order asked.

        The cost depends on the rows returned, not on the length of the session.
        """
        ...

    async def seq_of(self, session_id: str, event_id: str) -> int | None:
        """Return the position of the first row with this id, None if there is none."""
        ...

    async def head(self, session_id: str) -> Head: ...

    async def take_lease(self, session_id: str) -> int:
        """Return a new epoch, greater than every one before. Appends fenced with an older one now raise LeaseLost."""
        ...

    async def delete(self, session_id: str, *, caller: str, guard: Guard | None = None) -> Tombstone:
        """Remove the rows and what only they used, leaving a signed tombstone. The id can never be begun again."""
        ...

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` called on the event loop after each commit, per session in order, even if the caller of
        `append` has been cancelled meanwhile. It must return at once and must not raise."""
        ...


class SummaryCodec(Protocol[S]):
    """How a session is summed up. Pure: it runs inside the transaction of an append, on the store's thread.

    `version` is raised whenever `summarise` or `encode` changes; a store that opens with another version than the one
    it was written with folds every summary anew.
    """

    @property
    def version(self) -> int: ...
    def summarise(self, previous: S | None, row: Row) -> S: ...
    def to_columns(self, summary: S) -> SummaryColumns: ...
    def encode(self, summary: S) -> bytes: ...
    def decode(self, data: bytes) -> S: ...


@dataclass(frozen=True, slots=True)
class SummaryPosition:
    """Where a page of summaries begins or ends: lists are sorted by creation, then id."""

    created_at: datetime
    session_id: str


@dataclass(frozen=True, slots=True)
class CreatedRange:
    gt: datetime | None = None
    gte: datetime | None = None
    lt: datetime | None = None
    lte: datetime | None = None


@dataclass(frozen=True, slots=True)
class SummaryQuery:
    """Which summaries, in which order. At most one of `after` and `before` is given.

    `after` continues behind a page (its `next`), `before` goes back to the page in front of one (its `previous`); both
    in the sense of `order`. An empty `statuses` means any status.
    """

    statuses: frozenset[str] = frozenset()
    agent_id: str | None = None
    agent_version: int | None = None
    created: CreatedRange = CreatedRange()
    include_archived: bool = False
    order: Literal["asc", "desc"] = "desc"
    limit: int = 20
    after: SummaryPosition | None = None
    before: SummaryPosition | None = None


@dataclass(frozen=True, slots=True)
class Summarised(Generic[S]):
    session_id: str
    summary: S


@dataclass(frozen=True, slots=True)
class SummaryPage(Generic[S]):
    """`next` and `previous` are None where the list ends."""

    items: tuple[Summarised[S], ...]
    next: SummaryPosition | None
    previous: SummaryPosition | None


class Summaries(Protocol[S]):
    """One summary per session: a cache of the fold over its rows, written together with them, never read to decide."""

    async def summary(self, session_id: str) -> S:
        """Raises NotFound for a session that does not exist or was deleted."""
        ...

    async def summaries(self, query: SummaryQuery) -> SummaryPage[S]: ...

    async def was_deleted(self, session_id: str) -> bool:
        """Whether there was such a session, of which only its tombstone is left."""
        ...

    async def rebuild_summaries(self) -> int:
        """Fold every session anew and return how many there are."""
        ...


class Store(Rows, Summaries[S], Protocol[S]):
    """The whole port, as assembly sees it."""
