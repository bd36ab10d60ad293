"""What the tests of the store share: drafts, a clock that is set by hand, a summary that counts."""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from galley_server.ids import new_id
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.row import Draft, Row
from galley_server.log.sqlite import SqliteStore
from galley_server.log.store import SummaryColumns

KEY = ChainKey(b"k" * 32)


@dataclass(frozen=True, slots=True)
class Tally:
    """Folded from rows of type `set`, whose body is a JSON object of columns; every row is counted."""

    rows: int = 0
    status: str = "idle"
    agent_id: str = "agent_1"
    agent_version: int = 1
    created_at: str = ""
    archived: bool = False


@dataclass(slots=True)
class TallyCodec:
    """A row of type `hold` stops the writer in the middle of its transaction until `release` is set."""

    version: int = 1
    folded: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def summarise(self, previous: Tally | None, row: Row) -> Tally:
        self.folded += 1
        if row.type == "poison":
            raise ValueError("this row cannot be summed up")
        if row.type == "hold":
            self.held.set()
            assert self.release.wait(5)
        before = previous or Tally(created_at=row.at.isoformat())
        changes = json.loads(row.body) if row.type == "set" else {}
        return replace(before, rows=before.rows + 1, **changes)

    def to_columns(self, summary: Tally) -> SummaryColumns:
        return SummaryColumns(
            status=summary.status,
            agent_id=summary.agent_id,
            agent_version=summary.agent_version,
            created_at=datetime.fromisoformat(summary.created_at),
            archived=summary.archived,
        )

    def encode(self, summary: Tally) -> bytes:
        return json.dumps(asdict(summary)).encode()

    def decode(self, data: bytes) -> Tally:
        return Tally(**json.loads(data))


@dataclass(slots=True)
class Clock:
    now: datetime = field(default=datetime(2026, 11, 23, 8, 0, 0, 123456, UTC))

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Kit:
    """A store with what a test may turn or look at."""

    store: SqliteStore[Tally]
    database: Database
    codec: TallyCodec
    clock: Clock

    async def begin(self, *drafts: Draft) -> str:
        session_id = new_id("sesn")
        await self.store.append(session_id, drafts or [draft()], expected=0)
        return session_id


@asynccontextmanager
async def open_kit(path: Path | Literal[":memory:"], codec: TallyCodec | None = None) -> AsyncIterator[Kit]:
    codec = codec or TallyCodec()
    clock = Clock()
    async with Database.open(path) as database, SqliteStore.open(database, KEY, codec, clock=clock) as store:
        yield Kit(store, database, codec, clock)


def draft(type: str = "user.message", text: str = "hello", *, id: str | None = None) -> Draft:
    id = id or new_id("sevt")
    body = json.dumps({"id": id, "text": text, "type": type}, separators=(",", ":"), ensure_ascii=False)
    return Draft(id, type, body.encode())


def setting(**columns: object) -> Draft:
    return Draft(new_id("irow"), "set", json.dumps(columns).encode())
