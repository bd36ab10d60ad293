"""What lists can be asked, with limits and defaults. Names are those of the SDK's parameters. No I/O here.

Source of the shapes: `anthropic.types.beta`, package 2.12.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from galley_server.wire.base import Wire
from galley_server.wire.bounds import Id, Version
from galley_server.wire.session import Status
from galley_server.wire.validation import RuleBroken

Order: TypeAlias = Literal["asc", "desc"]
Cursor: TypeAlias = Annotated[str, Field(min_length=1, max_length=512)]

EventType: TypeAlias = Literal[
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.tool_result",
    "user.define_outcome",
    "system.message",
    "agent.message",
    "agent.thinking",
    "agent.tool_use",
    "agent.tool_result",
    "agent.mcp_tool_use",
    "agent.mcp_tool_result",
    "agent.custom_tool_use",
    "agent.thread_context_compacted",
    "agent.thread_message_received",
    "agent.thread_message_sent",
    "session.error",
    "session.status_idle",
    "session.status_rescheduled",
    "session.status_running",
    "session.status_terminated",
    "session.thread_created",
    "session.thread_status_idle",
    "session.thread_status_rescheduled",
    "session.thread_status_running",
    "session.thread_status_terminated",
    "session.updated",
    "session.usage",
    "span.model_request_start",
    "span.model_request_end",
    "span.outcome_evaluation_start",
    "span.outcome_evaluation_ongoing",
    "span.outcome_evaluation_end",
    "workflow_run.created",
    "workflow_run.status_running",
    "workflow_run.status_idle",
    "workflow_run.status_ended",
    "workflow_run.error",
    "workflow_run.phase_started",
    "workflow_run.phase_ended",
]
PreviewType: TypeAlias = Literal["agent.message", "agent.thinking"]


def _utc(at: datetime) -> datetime:
    """A time without a zone is UTC."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _distinct(values: object) -> object:
    """Repetitions count once."""
    return tuple(dict.fromkeys(values)) if isinstance(values, tuple) else values


Time: TypeAlias = Annotated[datetime, AfterValidator(_utc)]


class PageQuery(Wire):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    page: Cursor | None = None


class AgentQuery(PageQuery):
    created_at_gte: Time | None = None
    created_at_lte: Time | None = None
    include_archived: bool = False


class EnvironmentQuery(PageQuery):
    include_archived: bool = False


class CreatedQuery(Wire):
    created_at_gt: Time | None = None
    created_at_gte: Time | None = None
    created_at_lt: Time | None = None
    created_at_lte: Time | None = None

    def holds(self, at: datetime) -> bool:
        """Whether a time is in the range, as precisely as times are shown: in milliseconds."""
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)
        return (
            (self.created_at_gt is None or at > self.created_at_gt)
            and (self.created_at_gte is None or at >= self.created_at_gte)
            and (self.created_at_lt is None or at < self.created_at_lt)
            and (self.created_at_lte is None or at <= self.created_at_lte)
        )

    @property
    def bounded(self) -> bool:
        return any((self.created_at_gt, self.created_at_gte, self.created_at_lt, self.created_at_lte))


class SessionQuery(CreatedQuery):
    """`agent_version` counts only beside `agent_id`."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    page: Cursor | None = None
    order: Order = "desc"
    agent_id: Id | None = None
    agent_version: Version | None = None
    deployment_id: Id | None = None
    memory_store_id: Id | None = None
    statuses: tuple[Status, ...] = ()
    include_archived: bool = False


class EventQuery(CreatedQuery):
    """The range is about `processed_at`. `after_event_id` is a cursor of any face: `row_...`, or an event's id."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 1000
    page: Cursor | None = None
    order: Order = "asc"
    types: Annotated[tuple[EventType, ...], Field(max_length=100)] = ()
    after_event_id: Id | None = None


class FileQuery(Wire):
    ids: Annotated[tuple[Id, ...], Field(max_length=100), BeforeValidator(_distinct)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] | None = None
    page: Cursor | None = None
    scope_id: Id | None = None

    @model_validator(mode="after")
    def _check_ids(self) -> "FileQuery":
        if self.ids is not None and (self.limit is not None or self.page is not None):
            raise RuleBroken("ids cannot be combined with limit or page", "ids")
        return self


class ModelQuery(Wire):
    after_id: Cursor | None = None
    before_id: Cursor | None = None
    lifecycle: Annotated[tuple[Literal["active", "deprecated", "retired"], ...], Field(max_length=3)] = ()
    limit: Annotated[int, Field(ge=1, le=1000)] = 20

    @model_validator(mode="after")
    def _check_cursors(self) -> "ModelQuery":
        if self.after_id is not None and self.before_id is not None:
            raise RuleBroken("after_id and before_id cannot be combined", "before_id")
        return self
