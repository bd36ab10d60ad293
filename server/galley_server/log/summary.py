"""A session's summary: what lists and `GET` show without reading the log. A cache of the fold, kept small.

The agent snapshot and the resources are not in it (a system prompt alone may be 100 KB, and the summary is written with
every append): it names the rows that hold them.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, ClassVar, Final

from pydantic import Field, TypeAdapter

from galley_server.log import internal
from galley_server.log.projection import PROCESSED_TYPE, QUEUED_TYPES
from galley_server.log.row import Row
from galley_server.log.state import Status, add_active, add_usage
from galley_server.log.store import SummaryColumns
from galley_server.wire import events as ev
from galley_server.wire.usage import SessionUsage


@dataclass(frozen=True, slots=True)
class Summary:
    """`agent_row` and `resources_row` are the positions of the rows that hold the current snapshot and resources."""

    seq: int
    created_at: datetime
    updated_at: datetime
    agent_id: str
    agent_version: int
    environment_id: str
    thread_id: str
    agent_row: int
    resources_row: int
    title: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    vault_ids: tuple[str, ...] = ()
    status: Status = "idle"
    stop_reason: ev.StopReason | None = None
    archived_at: datetime | None = None
    running_since: datetime | None = None
    usage: SessionUsage = field(default_factory=SessionUsage)
    queued: int = 0
    """Client events that are not processed yet."""
    settled: bool = True
    """False: something stands in the log that nobody has dealt with, so a starting server must look at the session."""

    @property
    def shown_status(self) -> Status:
        """What clients see: a session with something to do is running, even if its first step is still to come.

        Else a client that sends a message and polls for `idle` would take the idle before its turn for the one after.
        A message queued behind a required action changes nothing: the session goes on waiting for the action.
        """
        blocked = isinstance(self.stop_reason, ev.RequiresAction) and self.queued > 0
        return "running" if self.status == "idle" and not self.settled and not blocked else self.status


_SUMMARY: Final[TypeAdapter[Summary]] = TypeAdapter(Summary)
_Content = Annotated[
    internal.SessionCreated
    | internal.SessionChanged
    | internal.Archived
    | ev.StatusRunning
    | ev.StatusIdle
    | ev.StatusRescheduled
    | ev.StatusTerminated
    | ev.ModelRequestEnd,
    Field(discriminator="type"),
]
_CONTENT: Final[TypeAdapter[_Content]] = TypeAdapter(_Content)
_REPORTS: Final = frozenset({"internal.session_changed", "internal.archived", "session.updated", "session.deleted"})
"""Rows that give nobody anything to do."""

_SUMMARISED: Final = frozenset(
    {
        "internal.session_changed",
        "internal.archived",
        "session.status_running",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_terminated",
        "span.model_request_end",
    }
)


def _first(row: Row) -> Summary:
    created = internal.SessionCreated.model_validate_json(row.body)
    return Summary(
        seq=row.seq,
        created_at=row.at,
        updated_at=row.at,
        agent_id=created.agent.id,
        agent_version=created.agent.version,
        environment_id=created.environment_id,
        thread_id=created.thread_id,
        agent_row=row.seq,
        resources_row=row.seq,
        title=created.title,
        metadata=created.metadata,
        vault_ids=created.vault_ids,
    )


def _with_status(summary: Summary, status: Status, at: datetime) -> Summary:
    usage = summary.usage
    if summary.running_since is not None:
        usage = add_active(usage, at - summary.running_since)
    running_since = at if status == "running" else None
    return replace(summary, status=status, usage=usage, running_since=running_since, stop_reason=None)


def _changed(summary: Summary, change: internal.SessionChanged, row: Row) -> Summary:
    given = change.model_fields_set
    return replace(
        summary,
        updated_at=row.at,
        title=change.title if "title" in given else summary.title,
        metadata=summary.metadata if change.metadata is None else change.metadata,
        agent_row=summary.agent_row if change.agent is None else row.seq,
        resources_row=summary.resources_row if change.resources is None else row.seq,
    )


def summarise(previous: Summary | None, row: Row) -> Summary:
    """Return the summary with one more row in it. Pure."""
    if previous is None:
        return _first(row)
    if row.type not in _SUMMARISED:
        return _with_work(previous, row)
    return _with_content(replace(previous, seq=row.seq, updated_at=row.at), row)


def _with_work(summary: Summary, row: Row) -> Summary:
    """Count what waits. The rows of a turn need no look: its status says that it is not over."""
    queued = summary.queued
    if row.type in QUEUED_TYPES:
        queued += 1
    elif row.type == PROCESSED_TYPE:
        queued -= 1
    over = row.type == PROCESSED_TYPE and queued == 0 and summary.status == "idle"
    settled = over or (summary.settled and row.type in _REPORTS)
    # An interrupt ends the turn that waits for the client, so from here on the session waits for nobody.
    freed = row.type == "user.interrupt" and isinstance(summary.stop_reason, ev.RequiresAction)
    stop_reason = None if freed else summary.stop_reason
    return replace(summary, seq=row.seq, queued=queued, settled=settled, stop_reason=stop_reason)


def _with_content(summary: Summary, row: Row) -> Summary:
    content = _CONTENT.validate_json(row.body)
    match content:
        case internal.SessionCreated():
            return summary
        case internal.SessionChanged():
            return _changed(summary, content, row)
        case internal.Archived():
            return replace(summary, archived_at=row.at)
        case ev.StatusRunning():
            return replace(_with_status(summary, "running", row.at), settled=False)
        case ev.StatusIdle(stop_reason=reason):
            return replace(_with_status(summary, "idle", row.at), stop_reason=reason, settled=summary.queued == 0)
        case ev.StatusRescheduled():
            return _with_status(summary, "rescheduling", row.at)
        case ev.StatusTerminated():
            return replace(_with_status(summary, "terminated", row.at), settled=True)
        case ev.ModelRequestEnd(model_usage=usage):
            return replace(summary, usage=add_usage(summary.usage, usage))


class SessionSummaries:
    """The codec the store is opened with."""

    version: ClassVar[int] = 1

    def summarise(self, previous: Summary | None, row: Row) -> Summary:
        return summarise(previous, row)

    def to_columns(self, summary: Summary) -> SummaryColumns:
        return SummaryColumns(
            status=summary.shown_status,
            agent_id=summary.agent_id,
            agent_version=summary.agent_version,
            created_at=summary.created_at,
            archived=summary.archived_at is not None,
        )

    def encode(self, summary: Summary) -> bytes:
        return _SUMMARY.dump_json(summary)

    def decode(self, data: bytes) -> Summary:
        return _SUMMARY.validate_json(data)
