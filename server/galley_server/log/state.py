"""`fold(rows) -> SessionState`: everything the brain knows about a session, from its rows alone. No I/O here."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from galley_server.log import internal as row_types
from galley_server.log.internal import McpListing
from galley_server.log.row import Row
from galley_server.wire import events as ev
from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import JSON
from galley_server.wire.content import ResultBlock, TextBlock, UserBlock
from galley_server.wire.environment import Networking
from galley_server.wire.resource import FileResource
from galley_server.wire.usage import CacheCreation, SessionUsage

Status: TypeAlias = Literal["idle", "running", "rescheduling", "terminated"]

Content: TypeAlias = (
    ev.UserMessage
    | ev.SystemMessage
    | ev.UserInterrupt
    | ev.UserToolConfirmation
    | ev.UserCustomToolResult
    | ev.AgentToolUse
    | ev.AgentToolResult
    | ev.AgentMcpToolUse
    | ev.AgentMcpToolResult
    | ev.AgentCustomToolUse
    | ev.StatusRunning
    | ev.StatusIdle
    | ev.StatusRescheduled
    | ev.StatusTerminated
    | ev.ModelRequestStart
    | ev.ModelRequestEnd
    | row_types.Internal
)
"""The rows that change the state. The others (previews of them, reports, cross-posts) are for readers only."""

INTERRUPTED: Final = TextBlock(text="Tool execution was interrupted before completion. Please retry.")
"""What the model reads of a call that an interrupt ended. Official wording."""

_CONTENT: TypeAdapter[Content] = TypeAdapter(Annotated[Content, Field(discriminator="type")])
_FOLDED = frozenset(
    {
        "user.message",
        "system.message",
        "user.interrupt",
        "user.tool_confirmation",
        "user.custom_tool_result",
        "agent.tool_use",
        "agent.tool_result",
        "agent.mcp_tool_use",
        "agent.mcp_tool_result",
        "agent.custom_tool_use",
        "session.status_running",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_terminated",
        "span.model_request_start",
        "span.model_request_end",
        "internal.session_created",
        "internal.session_changed",
        "internal.processed",
        "internal.assistant",
        "internal.dispatch",
        "internal.mcp_listed",
        "internal.retry",
        "internal.turn_failed",
        "internal.call_closed",
        "internal.archived",
    }
)


@dataclass(frozen=True, slots=True)
class CallResult:
    content: tuple[ResultBlock, ...]
    is_error: bool


@dataclass(slots=True)
class Call:
    """A tool call of the last assistant turn, from the model's wish to its one result."""

    event_id: str
    name: str
    input: dict[str, JSON]
    custom: bool
    permission: ev.Permission
    server: str | None = None
    """The MCP server whose tool it is."""
    confirmation: ev.UserToolConfirmation | None = None
    dispatched: bool = False
    incarnation: str | None = None
    """The sandbox it was sent to."""
    result: CallResult | None = None

    @property
    def lane(self) -> str:
        """Its name where calls wait for each other, which only those in the sandbox do."""
        return self.name if self.server is None else ""

    @property
    def awaits_client(self) -> bool:
        """Nothing happens to it before the client answers."""
        if self.result is not None:
            return False
        return self.custom or (self.permission == "ask" and self.confirmation is None)


@dataclass(frozen=True, slots=True)
class UserTurn:
    content: tuple[UserBlock, ...]


@dataclass(frozen=True, slots=True)
class SystemTurn:
    text: str


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    blocks: tuple[dict[str, JSON], ...]
    calls: dict[str, str]
    stop_reason: str
    stop_details: ev.StopDetails | None = None


Turn: TypeAlias = UserTurn | SystemTurn | AssistantTurn


@dataclass(frozen=True, slots=True)
class Retry:
    attempt: int
    not_before: datetime


@dataclass(slots=True)
class SessionState:
    """Mutable only through `apply`. `seq` is the last row folded in."""

    seq: int = 0
    agent: SessionAgent | None = None
    thread_id: str = ""
    resources: tuple[FileResource, ...] = ()
    vault_ids: tuple[str, ...] = ()
    networking: Networking | None = None
    mcp: dict[str, McpListing] = field(default_factory=dict)
    """What each MCP server offers, by its name, as it was last listed."""
    mcp_listed: bool = False
    """Whether they were asked in this turn."""
    status: Status = "idle"
    stop_reason: ev.StopReason | None = None
    usage: SessionUsage = field(default_factory=SessionUsage)
    running_since: datetime | None = None
    transcript: list[Turn] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    queue: dict[str, ev.UserMessage | ev.SystemMessage] = field(default_factory=dict)
    interrupts: list[str] = field(default_factory=list)
    confirmations: list[str] = field(default_factory=list)
    open_request: str | None = None
    incarnation: str | None = None
    """The sandbox of the latest dispatch."""
    retry: Retry | None = None
    failed: bool = False
    rounds: int = 0
    """Model requests since the turn opened whose answers ask for another: tool calls, or a pause."""

    def apply(self, row: Row) -> None:
        self.seq = row.seq
        if row.type in _FOLDED:
            self._fold(_CONTENT.validate_json(row.body), row)

    def open_calls(self) -> list[Call]:
        return [call for call in self.calls.values() if call.result is None]

    def latest_calls(self) -> list[Call]:
        """The calls of the last answer that made any."""
        for turn in reversed(self.transcript):
            if isinstance(turn, AssistantTurn) and turn.calls:
                return [self.calls[event_id] for event_id in turn.calls.values() if event_id in self.calls]
        return []

    def _fold(self, content: Content, row: Row) -> None:
        match content:
            case ev.UserMessage() | ev.SystemMessage():
                self.queue[row.id] = content
            case ev.UserInterrupt():
                self.interrupts.append(row.id)
            case ev.UserToolConfirmation(tool_use_id=call_id):
                self.calls[call_id].confirmation = content
                self.confirmations.append(row.id)
            case ev.UserCustomToolResult(custom_tool_use_id=call_id):
                self._answer(call_id, content.content, content.is_error)
            case ev.AgentToolUse(name=name, input=tool_input):
                permission = content.evaluated_permission or "allow"
                self.calls[row.id] = Call(row.id, name, tool_input, custom=False, permission=permission)
            case ev.AgentMcpToolUse(name=name, input=tool_input, mcp_server_name=server):
                permission = content.evaluated_permission or "allow"
                self.calls[row.id] = Call(row.id, name, tool_input, custom=False, permission=permission, server=server)
            case ev.AgentCustomToolUse(name=name, input=tool_input):
                self.calls[row.id] = Call(row.id, name, tool_input, custom=True, permission="allow")
            case ev.AgentToolResult(tool_use_id=call_id) | ev.AgentMcpToolResult(mcp_tool_use_id=call_id):
                self._answer(call_id, content.content, content.is_error)
            case ev.ModelRequestStart():
                self.open_request = row.id
            case ev.ModelRequestEnd(model_usage=usage):
                self.open_request = None
                self.usage = add_usage(self.usage, usage)
            case ev.StatusRunning() | ev.StatusIdle() | ev.StatusRescheduled() | ev.StatusTerminated():
                self._status(content, row.at)
            case _:
                self._fold_internal(content)

    def _fold_internal(self, content: row_types.Internal) -> None:
        match content:
            case row_types.SessionCreated():
                self.agent, self.thread_id, self.resources = content.agent, content.thread_id, content.resources
                self.vault_ids, self.networking = content.vault_ids, content.networking
            case row_types.SessionChanged():
                self.agent = content.agent or self.agent
                self.resources = self.resources if content.resources is None else content.resources
            case row_types.Processed(event_id=event_id, dropped=dropped):
                self._processed(event_id, dropped=dropped)
            case row_types.Assistant(blocks=blocks, calls=calls, stop_reason=reason, stop_details=details):
                self.transcript.append(AssistantTurn(blocks, calls, reason, details))
                self.retry = None
                self.rounds += 1 if calls or reason == "pause_turn" else 0
            case row_types.Dispatch(tool_use_id=call_id, incarnation=incarnation):
                call = self.calls[call_id]
                call.dispatched, call.incarnation = True, incarnation
                self.incarnation = incarnation or self.incarnation
            case row_types.McpListed(servers=servers):
                self._listed(servers)
            case row_types.RetryAt(attempt=attempt, not_before=not_before):
                self.retry = Retry(attempt, not_before)
            case row_types.TurnFailed():
                self.failed = True
            case row_types.CallClosed(custom_tool_use_id=call_id):
                self._answer(call_id, (INTERRUPTED,), is_error=True)
            case row_types.Archived():
                pass

    def _answer(self, call_id: str, content: tuple[ResultBlock, ...] | None, is_error: bool | None) -> None:
        self.calls[call_id].result = CallResult(content or (), is_error=bool(is_error))

    def _listed(self, servers: Iterable[McpListing]) -> None:
        self.mcp_listed = True
        for listing in servers:
            known = self.mcp.get(listing.server)
            if listing.tools is not None or (known is not None and known.url != listing.url):
                self.mcp[listing.server] = listing

    def _processed(self, event_id: str, *, dropped: bool) -> None:
        queued = self.queue.pop(event_id, None)
        match queued:
            case None:
                self.interrupts = [i for i in self.interrupts if i != event_id]
                self.confirmations = [i for i in self.confirmations if i != event_id]
            case ev.UserMessage() if not dropped:
                self.transcript.append(UserTurn(queued.content))
            case ev.SystemMessage() if not dropped:
                self.transcript.append(SystemTurn("\n\n".join(block.text for block in queued.content)))

    def _status(
        self, event: ev.StatusRunning | ev.StatusIdle | ev.StatusRescheduled | ev.StatusTerminated, at: datetime
    ) -> None:
        if self.running_since is not None:
            self.usage = add_active(self.usage, at - self.running_since)
            self.running_since = None
        self.failed = False
        match event:
            case ev.StatusRunning():
                resumed = self.status == "rescheduling" or isinstance(self.stop_reason, ev.RequiresAction)
                self.rounds = self.rounds if resumed else 0
                self.status, self.stop_reason, self.running_since = "running", None, at
            case ev.StatusIdle(stop_reason=reason):
                self.status, self.stop_reason, self.retry = "idle", reason, None
                self.mcp_listed = self.mcp_listed and isinstance(reason, ev.RequiresAction)
            case ev.StatusRescheduled():
                self.status = "rescheduling"
            case ev.StatusTerminated():
                self.status = "terminated"


def add_usage(total: SessionUsage, usage: ev.ModelUsage) -> SessionUsage:
    """Galley asks for five-minute cache entries only, so every cache write counts as one of those."""
    written = total.cache_creation.ephemeral_5m_input_tokens + usage.cache_creation_input_tokens
    return total.model_copy(
        update={
            "input_tokens": total.input_tokens + usage.input_tokens,
            "output_tokens": total.output_tokens + usage.output_tokens,
            "cache_read_input_tokens": total.cache_read_input_tokens + usage.cache_read_input_tokens,
            "cache_creation": CacheCreation(ephemeral_5m_input_tokens=written),
        }
    )


def add_active(total: SessionUsage, ran: timedelta) -> SessionUsage:
    return total.model_copy(update={"active_seconds": round(total.active_seconds + ran.total_seconds(), 3)})


def fold(rows: Iterable[Row], state: SessionState | None = None) -> SessionState:
    state = state or SessionState()
    for row in rows:
        state.apply(row)
    return state
