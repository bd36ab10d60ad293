"""Internal rows: what the log must remember and no face shows."""

from typing import Literal, TypeAlias

from pydantic import Field

from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import JSON, Timestamp, Wire
from galley_server.wire.events import StopDetails
from galley_server.wire.resource import FileResource


class SessionCreated(Wire):
    """The first row of every session."""

    type: Literal["internal.session_created"] = "internal.session_created"
    agent: SessionAgent
    environment_id: str
    thread_id: str
    title: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    resources: tuple[FileResource, ...] = ()
    vault_ids: tuple[str, ...] = ()


class SessionChanged(Wire):
    """An update of the session. Unset means unchanged, so a cleared title can be told from an untouched one."""

    type: Literal["internal.session_changed"] = "internal.session_changed"
    title: str | None = None
    metadata: dict[str, str] | None = None
    agent: SessionAgent | None = None
    resources: tuple[FileResource, ...] | None = None


class Processed(Wire):
    """This client event counts as processed from this row on. `dropped`: a dead turn flushed it unread.

    One row per event, because a row is what a cursor names: a reader resumes behind exactly what it saw.
    """

    type: Literal["internal.processed"] = "internal.processed"
    event_id: str
    dropped: bool = False


class Assistant(Wire):
    """A model's answer as it came: signatures and `toolu_` ids are needed verbatim by the next request."""

    type: Literal["internal.assistant"] = "internal.assistant"
    request_id: str
    blocks: tuple[dict[str, JSON], ...]
    calls: dict[str, str]
    """`toolu_` id -> event id of the call, in block order."""
    stop_reason: str
    stop_details: StopDetails | None = None


class Dispatch(Wire):
    """The call is about to be sent to this incarnation of the sandbox. After it, a lost answer means: may have run."""

    type: Literal["internal.dispatch"] = "internal.dispatch"
    tool_use_id: str
    incarnation: str


class RetryAt(Wire):
    """The model failed for the `attempt`th time in a row; ask again not before this time."""

    type: Literal["internal.retry"] = "internal.retry"
    attempt: int
    not_before: Timestamp


class TurnFailed(Wire):
    """The model cannot be asked with success: the turn is dead, and what is queued is flushed."""

    type: Literal["internal.turn_failed"] = "internal.turn_failed"


class CallClosed(Wire):
    """An interrupt ended a custom tool call: there is no official event with which a server answers one."""

    type: Literal["internal.call_closed"] = "internal.call_closed"
    custom_tool_use_id: str


class Archived(Wire):
    type: Literal["internal.archived"] = "internal.archived"


Internal: TypeAlias = (
    SessionCreated | SessionChanged | Processed | Assistant | Dispatch | RetryAt | TurnFailed | CallClosed | Archived
)
