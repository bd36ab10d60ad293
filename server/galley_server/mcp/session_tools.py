"""The tools that run sessions: every one returns at once, or within the wait that the caller allows."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field

from galley_server.errors import InvalidRequest, NotFound
from galley_server.mcp.catalogue_tools import FileOut, Key, Limit, PageCursor, once_of, show_file
from galley_server.mcp.compact import (
    COMPACT_TYPES,
    MAX_FULL_TOTAL,
    MAX_TOTAL,
    CompactEvent,
    FullEvent,
    compact,
    fitting,
    full,
)
from galley_server.mcp.tool import Output
from galley_server.runtime.events import EventBatch, ShownEvent
from galley_server.runtime.idempotency import Idempotency
from galley_server.runtime.runtime import Runtime
from galley_server.wire import events as ev
from galley_server.wire.base import JSON, rfc3339
from galley_server.wire.event_request import EventsSend
from galley_server.wire.query import EventQuery, EventType, FileQuery, SessionQuery
from galley_server.wire.session import Session, Status
from galley_server.wire.session_request import SessionCreate
from galley_server.wire.validation import take

_CALLS: Final[tuple[EventType, ...]] = ("agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use")

SessionId: TypeAlias = Annotated[str, Field(description="Id of the session, `sesn_...`.")]
Wait: TypeAlias = Annotated[
    float,
    Field(ge=0, le=45, description="Seconds to wait for the first new event, if there is none yet. 0: return at once."),
]


class SessionOut(Output):
    """A session. `pending` lists the calls that it waits for; answer each with confirm_tool."""

    session_id: str
    status: Status
    stop_reason: str | None = None
    title: str | None = None
    agent: str
    agent_id: str
    environment_id: str
    created_at: str
    archived: bool | None = None


class PendingOut(Output):
    tool_use_id: str
    tool: str
    server: str | None = None
    input: dict[str, JSON]
    needs: Literal["confirm_tool", "custom_tool_result"]


class SessionDetailOut(SessionOut):
    pending: list[PendingOut] | None = None
    files: list[FileOut] | None = None
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    active_seconds: float


class SessionsOut(Output):
    sessions: list[SessionOut]
    next_page: str | None = None


class EventsOut(Output):
    """What happened. Go on with `after` = `next_after`. Idle with stop_reason end_turn: the agent is done."""

    events: list[CompactEvent | FullEvent]
    next_after: str
    status: Status
    stop_reason: str | None = None
    has_more: bool


class SentOut(EventsOut):
    """The message is in the log. Its answer comes as events behind `next_after`."""

    session_id: str
    event_id: str


class CreatedOut(SessionOut):
    next_after: str


class SessionTools:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def create_session(
        self,
        agent_id: Annotated[str | None, Field(description="Left out: the default agent.")] = None,
        environment_id: Annotated[str | None, Field(description="Left out: the default environment.")] = None,
        title: Annotated[str | None, Field(description="A few words to find it again.")] = None,
        message: Annotated[str | None, Field(description="A first message, so that work begins at once.")] = None,
        file_ids: Annotated[
            list[str] | None,
            Field(description="Files to put into its sandbox, read-only, as /mnt/session/uploads/<their name>."),
        ] = None,
        vault_ids: Annotated[
            list[str] | None, Field(description="Vaults whose credentials it may use, without ever seeing them.")
        ] = None,
        idempotency_key: Key = None,
    ) -> CreatedOut:
        """Start a session: an agent with an isolated Linux sandbox of its own, which works until you archive it.

        Needs no argument. Returns at once; send_message gives it work and read_events follows it.
        """
        runtime = self._runtime
        agent_id = agent_id or (await runtime.agents.default()).id
        environment_id = environment_id or (await runtime.environments.default()).id
        once = once_of(
            "create_session",
            idempotency_key,
            agent_id=agent_id,
            environment_id=environment_id,
            title=title,
            message=message,
            file_ids=file_ids,
            vault_ids=vault_ids,
        )
        fields = {
            "agent": agent_id,
            "environment_id": environment_id,
            "title": title,
            "vault_ids": tuple(vault_ids or ()),
            "resources": await self._resources(file_ids or []),
            "initial_events": () if message is None else (_user_message(message),),
        }
        session = await runtime.sessions.create(take(SessionCreate, fields), once=once)
        return CreatedOut(**_session(session, None), next_after="row_0")

    async def send_message(
        self,
        session_id: SessionId,
        text: Annotated[str, Field(min_length=1, description="What the user says.")],
        wait_s: Wait = 0,
        idempotency_key: Key = None,
    ) -> SentOut:
        """Send a user message. Returns at once, or, with wait_s, as soon as the first events of the answer are there.

        A session that is busy takes the message at its next step. Follow the answer with read_events.
        """
        once = once_of("send_message", idempotency_key, session_id=session_id, text=text)
        (sent,) = await self._send(session_id, [_user_message(text)], once)
        found = await self._read(session_id, after=sent.cursor, wait_s=wait_s, limit=50, types=(), view="compact")
        return SentOut(session_id=session_id, event_id=sent.event_id, **dict(found))

    async def read_events(
        self,
        session_id: SessionId,
        after: Annotated[
            str | None, Field(description="`next_after` of the result before, or an event id. Left out: the beginning.")
        ] = None,
        wait_s: Wait = 0,
        limit: Annotated[int, Field(ge=1, le=500, description="How many events to return at most.")] = 50,
        types: Annotated[list[EventType] | None, Field(description="Only these types of events.")] = None,
        view: Annotated[
            Literal["compact", "full"],
            Field(description="compact: what was said and done. full: every event, as the official API shows it."),
        ] = "compact",
    ) -> EventsOut:
        """Read what has happened in a session since a cursor, waiting up to wait_s for something new.

        Repeat with after = next_after until status is idle and has_more is false. stop_reason end_turn: it is done;
        requires_action: answer the tool calls that need it with confirm_tool; retries_exhausted: see the session.error.
        """
        return await self._read(session_id, after=after, wait_s=wait_s, limit=limit, types=types or (), view=view)

    async def list_sessions(
        self,
        status: Annotated[Status | None, Field(description="Only sessions of this status.")] = None,
        agent_id: Annotated[str | None, Field(description="Only sessions of this agent.")] = None,
        include_archived: Annotated[bool, Field(description="Also sessions that were archived.")] = False,
        limit: Limit = 20,
        page: PageCursor = None,
    ) -> SessionsOut:
        """List sessions, newest first."""
        fields = {
            "statuses": () if status is None else (status,),
            "agent_id": agent_id,
            "include_archived": include_archived,
            "limit": limit,
            "page": page,
        }
        found = await self._runtime.sessions.list(take(SessionQuery, fields))
        shown = [SessionOut(**_session(session, None)) for session in found.data]
        return SessionsOut(sessions=shown, next_page=found.next_page)

    async def get_session(self, session_id: SessionId) -> SessionDetailOut:
        """Show a session: its status, what it waits for, its files, and the tokens it used."""
        session = await self._runtime.sessions.retrieve(session_id)
        now = await self._runtime.events.wait(session_id, after=None, limit=1)
        waiting = now.stop_reason.event_ids if isinstance(now.stop_reason, ev.RequiresAction) else ()
        files = await self._runtime.files.list(FileQuery(scope_id=session_id, limit=100))
        return SessionDetailOut(
            **_session(session, now.stop_reason),
            pending=await self._pending(session_id, frozenset(waiting)) or None,
            files=[show_file(file) for file in files.data] or None,
            input_tokens=session.usage.input_tokens,
            output_tokens=session.usage.output_tokens,
            cache_read_input_tokens=session.usage.cache_read_input_tokens,
            active_seconds=session.usage.active_seconds,
        )

    async def confirm_tool(
        self,
        session_id: SessionId,
        tool_use_id: Annotated[str, Field(description="Id of the tool use event that needs it.")],
        decision: Annotated[Literal["allow", "deny"], Field(description="Whether the call may run.")],
        reason: Annotated[str | None, Field(description="Told to the agent. Only with deny.")] = None,
    ) -> EventsOut:
        """Allow or deny a tool call that a session waits for (stop_reason requires_action). Ask the user first."""
        fields: dict[str, object] = {"type": "user.tool_confirmation", "tool_use_id": tool_use_id, "result": decision}
        if reason is not None:
            fields["deny_message"] = reason
        (sent,) = await self._send(session_id, [fields], None)
        return await self._read(session_id, after=sent.cursor, wait_s=0, limit=1, types=(), view="compact")

    async def interrupt_session(self, session_id: SessionId) -> EventsOut:
        """Stop what a session is doing. It becomes idle and takes new messages; what its tools did stays done."""
        (sent,) = await self._send(session_id, [{"type": "user.interrupt"}], None)
        return await self._read(session_id, after=sent.cursor, wait_s=2, limit=50, types=(), view="compact")

    async def archive_session(self, session_id: SessionId) -> SessionOut:
        """End a session for good: its sandbox is removed and it takes no more messages. Its events stay readable."""
        return SessionOut(**_session(await self._runtime.sessions.archive(session_id), None))

    async def _send(
        self, session_id: str, events: Sequence[dict[str, object]], once: Idempotency | None
    ) -> tuple[ShownEvent, ...]:
        return await self._runtime.events.send(
            session_id, take(EventsSend, {"events": tuple(events)}).events, once=once
        )

    async def _read(
        self,
        session_id: str,
        *,
        after: str | None,
        wait_s: float,
        limit: int,
        types: Sequence[EventType],
        view: Literal["compact", "full"],
    ) -> EventsOut:
        wanted = frozenset[str](types)
        if view == "compact":
            wanted = COMPACT_TYPES & wanted if wanted else COMPACT_TYPES
            if not wanted:
                raise InvalidRequest(f"types: {', '.join(types)} shows only in the full view; give view='full'")
        batch = await self._runtime.events.wait(session_id, after=after, timeout_s=wait_s, limit=limit, types=wanted)
        return _bounded(batch, view)

    async def _resources(self, file_ids: Sequence[str]) -> tuple[dict[str, object], ...]:
        """Files keep their names; of two with one name, the later is put into a directory named after its id."""
        resources: dict[str, dict[str, object]] = {}
        for index, file_id in enumerate(file_ids):
            try:
                name = (await self._runtime.files.retrieve(file_id)).filename
            except NotFound:
                raise InvalidRequest(f"file_ids.{index}: there is no file '{file_id[:80]}'") from None
            path = f"{file_id}/{name}" if name in resources else name
            resources[path] = {"type": "file", "file_id": file_id, "mount_path": path}
        return tuple(resources.values())

    async def _pending(self, session_id: str, waiting: frozenset[str]) -> list[PendingOut]:
        if not waiting:
            return []
        page = await self._runtime.events.list(session_id, EventQuery(types=_CALLS, order="desc"))
        calls = [compact(event) for event in reversed(page.data) if event.event_id in waiting]
        return [
            PendingOut(
                tool_use_id=call.id,
                tool=call.tool or "",
                input=call.input or {},
                server=call.server,
                needs="custom_tool_result" if call.type == "agent.custom_tool_use" else "confirm_tool",
            )
            for call in calls
        ]


def _user_message(text: str) -> dict[str, object]:
    return {"type": "user.message", "content": ({"type": "text", "text": text},)}


def _session(session: Session, stop_reason: ev.StopReason | None) -> dict[str, Any]:
    """The fields of a SessionOut."""
    return {
        "session_id": session.id,
        "status": session.status,
        "stop_reason": None if stop_reason is None else stop_reason.type,
        "title": session.title,
        "agent": session.agent.name,
        "agent_id": session.agent.id,
        "environment_id": session.environment_id,
        "created_at": rfc3339(session.created_at),
        "archived": True if session.archived_at else None,
    }


def _bounded(batch: EventBatch, view: Literal["compact", "full"]) -> EventsOut:
    """As many events as fit into one result; the cursor stands behind the last of them."""
    shown = batch.events if view == "full" else _once_each(batch.events)
    if view == "full":
        items: Sequence[CompactEvent | FullEvent] = [full(event) for event in shown]
        count = fitting([len(event.body) for event in shown], MAX_FULL_TOTAL)
    else:
        items = [compact(event) for event in shown]
        count = fitting([len(item.model_dump_json()) for item in items], MAX_TOTAL)
    everything = count == len(items)
    return EventsOut(
        events=list(items[:count]),
        next_after=batch.next_after if everything else shown[count - 1].cursor,
        status=batch.status,
        stop_reason=None if batch.stop_reason is None else batch.stop_reason.type,
        has_more=batch.has_more or not everything,
    )


def _once_each(events: Sequence[ShownEvent]) -> Sequence[ShownEvent]:
    """Without the arrival of what was processed in the same batch: its place is where it was processed."""
    processed = {event.event_id for event in events if event.processed_at is not None}
    return [event for event in events if event.processed_at is not None or event.event_id not in processed]
