"""Internal rows: what the log must remember and no face shows."""

from typing import Literal, TypeAlias

from pydantic import Field

from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import JSON, Timestamp, Wire
from galley_server.wire.environment import Networking
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
    networking: Networking | None = None
    """The environment's, as it was. None: the session was made by a Galley whose sandboxes had no network."""


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
    """The call is about to be sent. After it, a lost answer means: may have run.

    To this incarnation of the sandbox, which can be asked about it later; None: to an MCP server, which cannot.
    """

    type: Literal["internal.dispatch"] = "internal.dispatch"
    tool_use_id: str
    incarnation: str | None = None


class McpTool(Wire):
    """A tool as its server describes it. The schema is not ours to judge: the door checks calls against it."""

    name: str
    description: str | None = None
    input_schema: dict[str, JSON]


class McpListing(Wire):
    """What one server answered. `url` tells whether it is still that server. `tools` None: as before, or none yet."""

    server: str
    url: str
    tools: tuple[McpTool, ...] | None = None


class McpListed(Wire):
    """The MCP servers of the session were asked for their tools, once per turn and before its first model request.

    It is in the log because the model's next request must offer exactly what its last one did, whoever makes it.
    """

    type: Literal["internal.mcp_listed"] = "internal.mcp_listed"
    servers: tuple[McpListing, ...] = ()


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
    SessionCreated
    | SessionChanged
    | Processed
    | Assistant
    | Dispatch
    | McpListed
    | RetryAt
    | TurnFailed
    | CallClosed
    | Archived
)
