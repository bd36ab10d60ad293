"""One reader of one session: history joined with what is appended from now on, and the previews in between."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar, cast

from galley_server.errors import NotFound
from galley_server.log.row import Preview, Row
from galley_server.log.store import Rows

T_co = TypeVar("T_co", covariant=True)

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept in memory for one reader. What is more is read from the store (rows) or shed (previews)."""

    rows: int = 1024
    row_bytes: int = 16 * 1024 * 1024
    previews: int = 256


class Tail(Generic[T_co]):
    """An async iterator over one session. One task at a time may ask it.

    Asking may be cancelled and repeated: nothing is lost by it, so a face can wait with a timeout. It ends when the
    session is deleted or the log closes. A reader that is further behind than its bounds has to wait for the store, and
    nobody else has to wait for it. Close it, or just let go of it: the log holds its tails weakly.

    Previews keep the promises the wire makes: at most one start per event, no delta without its start, nothing after
    the event itself, and what is shed is always the end, so that the deltas delivered are a prefix of the text.
    """

    def __init__(
        self,
        rows: Rows,
        session_id: str,
        after: int | None,
        previews: frozenset[str],
        bounds: Bounds,
        on_close: Callable[["Tail[object]"], None],
    ) -> None:
        self.session_id = session_id
        self._rows = rows
        self._bounds = bounds
        self._on_close = on_close
        self._wanted = previews
        self._wake = asyncio.Event()
        self._live: deque[Row | Preview] = deque()
        self._live_rows = self._live_bytes = self._live_previews = 0
        self._history: deque[Row] = deque()
        self._seq = 0 if after is None else after
        self._wants_rows = after is not None
        # Until the history is read up to the first live row, live rows may be dropped: the next page has them.
        self._catching_up = self._wants_rows
        self._missed = False
        self._started: dict[str, None] = {}
        self._ended = False

    @property
    def wants_previews(self) -> bool:
        return bool(self._wanted) and not self._ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        while True:
            if self._history:
                row = self._history.popleft()
                self._seq = row.seq
                return cast(T_co, row)
            if self._catching_up:
                await self._read_page()
            elif self._live:
                item = self._take()
                if item is not None:
                    return cast(T_co, item)
            elif self._ended:
                raise StopAsyncIteration
            else:
                self._wake.clear()
                await self._wake.wait()

    async def aclose(self) -> None:
        self.end()
        self._on_close(self)

    def end(self) -> None:
        """Let the reader have the live items it was already given, then stop."""
        self._ended = True
        self._catching_up = False
        self._wanted = frozenset()
        self._wake.set()

    def offer_rows(self, rows: Iterable[Row]) -> None:
        """Take rows that have just become durable; none means that some were added elsewhere. Never blocks."""
        if self._ended:
            return
        known = False
        for row in rows:
            known = True
            self._started.pop(row.id, None)
            if self._wants_rows and not self._missed:
                self._offer_row(row)
        if self._wants_rows and not known:
            self._catching_up = True
        self._wake.set()

    def offer_preview(self, preview: Preview) -> None:
        """Take a preview if this reader asked for its type and has room. Never blocks."""
        if preview.event_type not in self._wanted or preview.first == (preview.event_id in self._started):
            return
        if self._live_previews >= self._bounds.previews:
            self._started.pop(preview.event_id, None)
            return
        if preview.first:
            # An interrupted event never ends; forgetting the oldest start bounds what such events leave behind.
            if len(self._started) >= self._bounds.previews:
                del self._started[next(iter(self._started))]
            self._started[preview.event_id] = None
        self._live.append(preview)
        self._live_previews += 1
        self._wake.set()

    def _offer_row(self, row: Row) -> None:
        full = self._live_rows >= self._bounds.rows or self._live_bytes + len(row.body) > self._bounds.row_bytes
        # A single row larger than the bound must still pass.
        if full and self._live_rows:
            # One append may have more rows than that, so it says nothing about the reader: the store has them all.
            self._drop_live()
            self._catching_up = self._missed = True
            return
        self._live.append(row)
        self._live_rows += 1
        self._live_bytes += len(row.body)

    async def _read_page(self) -> None:
        # Cleared before the read: what is offered from here on is either in this page or kept.
        self._missed = False
        try:
            page = await self._rows.read(self.session_id, after=self._seq, limit=_PAGE)
        except NotFound:
            if not self._ended:
                raise
            return
        whole = len(page) < _PAGE
        if self._live:
            page, met = self._join(page)
            whole = whole or met
        self._history.extend(page)
        if whole and not self._missed:
            self._catching_up = False

    def _join(self, page: list[Row]) -> tuple[list[Row], bool]:
        """Return the part of a page that lies before the first live row, and whether it reaches it.

        The live rows keep their place among the previews. A row can be in the page before its notice has arrived: its
        previews must not come after it.
        """
        first = next((item.seq for item in self._live if isinstance(item, Row)), None)
        met = first is not None and (not page or page[-1].seq >= first - 1)
        if first is not None:
            if not page:  # rows between were taken out of the store: finding that is not a reader's task
                self._seq = max(self._seq, first - 1)
            page = [row for row in page if row.seq < first]
        finished = {row.id for row in page}
        kept = [item for item in self._live if isinstance(item, Row) or item.event_id not in finished]
        if len(kept) < len(self._live):
            self._live_previews -= len(self._live) - len(kept)
            self._live = deque(kept)
        for id in finished:
            self._started.pop(id, None)
        return page, met

    def _take(self) -> Row | Preview | None:
        """Return the next live item, or None: it was already read from history, or something before it is missing."""
        item = self._live[0]
        if isinstance(item, Row) and item.seq > self._seq + 1:
            self._catching_up = True
            return None
        self._live.popleft()
        if isinstance(item, Preview):
            self._live_previews -= 1
            return item
        self._live_rows -= 1
        self._live_bytes -= len(item.body)
        if item.seq <= self._seq:
            return None
        self._seq = item.seq
        return item

    def _drop_live(self) -> None:
        self._live.clear()
        self._live_rows = self._live_bytes = self._live_previews = 0
        self._started.clear()
