"""The log as the brain and the faces use it: a store, live tails over it, and previews that are never stored."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self, TypeVar, assert_never
from weakref import WeakSet

from galley_server.errors import NotFound
from galley_server.log.answers import Remembered
from galley_server.log.row import Draft, Head, Preview, Row, Tombstone, parse_cursor
from galley_server.log.store import Deleted, Grown, Guard, Notice, Rows, Watcher
from galley_server.log.tail import Bounds, Tail

T = TypeVar("T")

ALL_PREVIEWS: Final = frozenset({"agent.message", "agent.thinking"})


class Log:
    """Appends and reads like the store below it, and follows a session without polling and without work when nobody
    listens. Belongs to one event loop."""

    def __init__(self, rows: Rows, *, bounds: Bounds | None = None) -> None:
        self._rows = rows
        self._bounds = bounds or Bounds()
        self._tails: dict[str, WeakSet[Tail[object]]] = {}
        self._closed = False
        rows.watch(self._notice)

    @classmethod
    @asynccontextmanager
    async def open(cls, rows: Rows, *, bounds: Bounds | None = None) -> AsyncIterator[Self]:
        log = cls(rows, bounds=bounds)
        try:
            yield log
        finally:
            log.close()

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
        return await self._rows.append(
            session_id, drafts, fence=fence, expected=expected, guard=guard, remember=remember
        )

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
        return await self._rows.read(
            session_id, after=after, before=before, limit=limit, types=types, newest_first=newest_first
        )

    async def head(self, session_id: str) -> Head:
        return await self._rows.head(session_id)

    async def take_lease(self, session_id: str) -> int:
        return await self._rows.take_lease(session_id)

    async def delete(self, session_id: str, *, caller: str, guard: Guard | None = None) -> Tombstone:
        """Delete the session; its tails end."""
        return await self._rows.delete(session_id, caller=caller, guard=guard)

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` called after each commit; see the port."""
        self._rows.watch(watcher)

    async def position(self, session_id: str, cursor: str) -> int:
        """Return the position a cursor names: `row_<seq>`, or an event id, which means its first row."""
        seq = parse_cursor(cursor)
        if seq is None:
            seq = await self._rows.seq_of(session_id, cursor)
        if seq is None:
            raise NotFound(f"{cursor} is not a row or an event of {session_id}")
        return seq

    def follow(self, session_id: str, *, after: int = 0) -> Tail[Row]:
        """Every row after a position: what is there, then what comes, without gap or duplicate."""
        return self._remember(Tail[Row](self._rows, session_id, after, frozenset(), self._bounds, self._forget))

    def previews(self, session_id: str, types: Collection[str] = ALL_PREVIEWS) -> Tail[Preview]:
        """The previews of these event types published from now on."""
        return self._remember(Tail[Preview](self._rows, session_id, None, frozenset(types), self._bounds, self._forget))

    def listen(
        self, session_id: str, *, after: int = 0, previews: Collection[str] = ALL_PREVIEWS
    ) -> Tail[Row | Preview]:
        """Rows as `follow` gives them and previews as `previews` does, in the one order in which they happened."""
        wanted = frozenset(previews)
        return self._remember(Tail[Row | Preview](self._rows, session_id, after, wanted, self._bounds, self._forget))

    def publish(self, session_id: str, preview: Preview) -> None:
        """Hand a preview to whoever listens now. Never blocks, never fails."""
        for tail in self._tails.get(session_id, ()):
            tail.offer_preview(preview)

    def wants_previews(self, session_id: str) -> bool:
        """Whether anybody would get a preview, so that none is made for nobody."""
        return any(tail.wants_previews for tail in self._tails.get(session_id, ()))

    def close(self) -> None:
        """End every tail once it has delivered what it holds, so that open streams finish."""
        self._closed = True
        for tails in list(self._tails.values()):
            for tail in list(tails):
                tail.end()
        self._tails.clear()

    def _remember(self, tail: Tail[T]) -> Tail[T]:
        if self._closed:
            tail.end()
        else:
            self._tails.setdefault(tail.session_id, WeakSet()).add(tail)
        return tail

    def _forget(self, tail: Tail[object]) -> None:
        tails = self._tails.get(tail.session_id)
        if tails is not None:
            tails.discard(tail)
            if not tails:
                del self._tails[tail.session_id]

    def _notice(self, notice: Notice) -> None:
        tails = self._tails.get(notice.session_id)
        if tails is None:
            return
        match notice:
            case Grown(rows=rows):
                for tail in tails:
                    tail.offer_rows(rows)
                if not tails:  # all were let go of without being closed
                    del self._tails[notice.session_id]
            case Deleted():
                del self._tails[notice.session_id]
                for tail in tails:
                    tail.end()
            case _:
                assert_never(notice)
