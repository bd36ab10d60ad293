"""What the tests of the runtime share: all of it over a real store, with a brain and hands that only take notes."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread
from galley_server.brain import drafts
from galley_server.ids import new_id
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.log import Log
from galley_server.log.row import Draft
from galley_server.log.sqlite import SqliteStore
from galley_server.log.state import SessionState
from galley_server.log.summary import SessionSummaries, Summary
from galley_server.runtime.idempotency import Idempotency
from galley_server.runtime.models import ModelDirectory, NoDirectory
from galley_server.runtime.runtime import Runtime, open_files
from galley_server.settings import Limits, Settings
from galley_server.wire import events as ev
from galley_server.wire.agent import Agent
from galley_server.wire.agent_request import AgentCreate
from galley_server.wire.event_request import AnyClientEvent, EventsSend
from galley_server.wire.file import File
from galley_server.wire.session import Session
from galley_server.wire.session_request import SessionCreate
from galley_server.wire.usage import SessionUsage
from galley_server.wire.validation import take

KEY = ChainKey(b"k" * 32)
MIB = 1 << 20


@dataclass(slots=True)
class Notes:
    """A brain that does nothing by itself, and hands that hold nothing."""

    woken: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    on_wake: Callable[[], object] = bool

    def wake(self, session_id: str) -> None:
        self.woken.append(session_id)
        self.on_wake()

    async def release(self, session_id: str) -> None:
        self.released.append(session_id)


@dataclass(frozen=True, slots=True)
class Kitchen:
    runtime: Runtime
    store: SqliteStore[Summary]
    log: Log
    database: Database
    notes: Notes

    async def agent(self, **fields: object) -> str:
        request = {"name": "cook", "model": "m", "tools": [{"type": "agent_toolset_20260401"}], **fields}
        return (await self.runtime.agents.create(take(AgentCreate, request))).id

    async def agent_once(self, key: str) -> Agent:
        request = take(AgentCreate, {"name": key, "model": "m"})
        return await self.runtime.agents.create(request, once=Idempotency(key, "fingerprint"))

    async def session(self, *, once: Idempotency | None = None, **fields: object) -> Session:
        agent = fields.pop("agent", None) or await self.agent()
        environment = fields.pop("environment_id", None) or (await self.runtime.environments.default()).id
        request = take(SessionCreate, {"agent": agent, "environment_id": environment, **fields})
        return await self.runtime.sessions.create(request, once=once)

    async def file(
        self, content: bytes = b"a,b\n1,2\n", name: str = "sales.csv", *, expires_in_seconds: int | None = None
    ) -> File:
        return await self.runtime.files.upload(name, None, pieces(content), expires_in_seconds=expires_in_seconds)

    async def idle(self, session_id: str, reason: ev.StopReason | None = None) -> None:
        """What a brain appends at the end of a turn that has taken everything in."""
        summary = await self.store.summary(session_id)
        waiting = await self.waiting(session_id)
        agent = (await self.runtime.sessions.retrieve(session_id)).agent
        state = SessionState(thread_id=summary.thread_id)
        rows = drafts.processed(waiting)
        rows += drafts.idle(state, agent, SessionUsage(), reason or ev.EndTurn())
        await self.log.append(session_id, rows)

    async def waiting(self, session_id: str) -> list[str]:
        rows = await self.log.read(session_id)
        marked = {row.body.split(b'"event_id":"')[1].split(b'"')[0].decode() for row in rows if "processed" in row.type}
        queued = ("user.message", "user.interrupt", "user.tool_confirmation", "system.message")
        return [row.id for row in rows if row.type in queued and row.id not in marked]

    async def call(self, session_id: str, *, custom: bool = False, ask: bool = True) -> str:
        """A tool call of the model, as the brain logs it."""
        event: ev.AgentToolUse | ev.AgentCustomToolUse
        if custom:
            event = ev.AgentCustomToolUse(id=new_id("sevt"), name="weather", input={})
        else:
            event = ev.AgentToolUse(
                id=new_id("sevt"), name="bash", input={}, evaluated_permission="ask" if ask else "allow"
            )
        await self.log.append(session_id, [drafts.event_draft(event)])
        return event.id


@asynccontextmanager
async def open_kitchen(
    home: Path, *, model: str = "m-1", limits: Limits | None = None, directory: ModelDirectory | None = None
) -> AsyncIterator[Kitchen]:
    environ = {"GALLEY_HOME": str(home), "GALLEY_MODEL": model}
    settings = Settings.from_env(environ)
    if limits is not None:
        settings = Settings(home=settings.home, model=settings.model, limits=limits)
    await to_thread.run_sync(lambda: home.mkdir(exist_ok=True))
    notes = Notes()
    async with (
        Database.open(home / "galley.db") as database,
        SqliteStore.open(database, KEY, SessionSummaries()) as store,
        Log.open(store) as log,
        open_files(settings, database) as files,
    ):
        runtime = Runtime(
            settings,
            database=database,
            log=log,
            summaries=store,
            files=files,
            brain=notes,
            hands=notes,
            directory=directory or NoDirectory(),
        )
        yield Kitchen(runtime, store, log, database, notes)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def message(text: str = "hello") -> dict[str, object]:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def events(*sent: dict[str, object]) -> Sequence[AnyClientEvent]:
    return take(EventsSend, {"events": list(sent)}).events


def row(event: ev.AnyEvent) -> Draft:
    return drafts.event_draft(event)
