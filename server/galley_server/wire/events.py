"""Events in official shape: what clients send, and what a session's log shows.

`processed_at` is not here: when an event counts as processed is a fact of the log (the row's time, or the time of the
row that marks a queued event), so the log's projection adds it.
Source of the shapes: `anthropic.types.beta.sessions`, package 2.12.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import JSON, Wire
from galley_server.wire.content import RedactedBlock, ResultBlock, TextBlock, UserBlock
from galley_server.wire.usage import SessionUsage


class Event(Wire):
    """What every event has. `id` is `sevt_...` and identifies a tool call all the way down into the sandbox."""

    id: str


# What clients send.


class UserMessage(Event):
    type: Literal["user.message"] = "user.message"
    content: tuple[UserBlock, ...]


class UserInterrupt(Event):
    type: Literal["user.interrupt"] = "user.interrupt"
    session_thread_id: str | None = None


class UserToolConfirmation(Event):
    type: Literal["user.tool_confirmation"] = "user.tool_confirmation"
    tool_use_id: str
    result: Literal["allow", "deny"]
    deny_message: str | None = None


class UserCustomToolResult(Event):
    type: Literal["user.custom_tool_result"] = "user.custom_tool_result"
    custom_tool_use_id: str
    content: tuple[ResultBlock, ...] | None = None
    is_error: bool | None = None


class SystemMessage(Event):
    type: Literal["system.message"] = "system.message"
    content: tuple[TextBlock, ...]


# What the brain and the hands log.


class AgentMessage(Event):
    type: Literal["agent.message"] = "agent.message"
    content: tuple[Annotated[TextBlock | RedactedBlock, Field(discriminator="type")], ...]


class AgentThinking(Event):
    type: Literal["agent.thinking"] = "agent.thinking"


class AlwaysAllowed(Wire):
    type: Literal["always_allow"] = "always_allow"


class AlwaysAsked(Wire):
    type: Literal["always_ask"] = "always_ask"


Permission: TypeAlias = Literal["allow", "ask", "deny"]


class AgentToolUse(Event):
    type: Literal["agent.tool_use"] = "agent.tool_use"
    name: str
    input: dict[str, JSON]
    evaluated_permission: Permission | None = None
    evaluation: Annotated[AlwaysAllowed | AlwaysAsked, Field(discriminator="type")] | None = None


class AgentToolResult(Event):
    type: Literal["agent.tool_result"] = "agent.tool_result"
    tool_use_id: str
    content: tuple[ResultBlock, ...] | None = None
    is_error: bool | None = None


class AgentMcpToolUse(Event):
    type: Literal["agent.mcp_tool_use"] = "agent.mcp_tool_use"
    mcp_server_name: str
    name: str
    input: dict[str, JSON]
    evaluated_permission: Permission | None = None
    evaluation: Annotated[AlwaysAllowed | AlwaysAsked, Field(discriminator="type")] | None = None


class AgentMcpToolResult(Event):
    type: Literal["agent.mcp_tool_result"] = "agent.mcp_tool_result"
    mcp_tool_use_id: str
    content: tuple[ResultBlock, ...] | None = None
    is_error: bool | None = None


class AgentCustomToolUse(Event):
    type: Literal["agent.custom_tool_use"] = "agent.custom_tool_use"
    name: str
    input: dict[str, JSON]


class EndTurn(Wire):
    type: Literal["end_turn"] = "end_turn"


class RequiresAction(Wire):
    type: Literal["requires_action"] = "requires_action"
    event_ids: tuple[str, ...]


class RetriesExhausted(Wire):
    type: Literal["retries_exhausted"] = "retries_exhausted"


class Refusal(Wire):
    type: Literal["refusal"] = "refusal"


StopReason: TypeAlias = Annotated[EndTurn | RequiresAction | RetriesExhausted | Refusal, Field(discriminator="type")]


class StopDetails(Wire):
    type: Literal["refusal"] = "refusal"
    category: Literal["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"] | None = None
    explanation: str | None = None


class StatusRunning(Event):
    type: Literal["session.status_running"] = "session.status_running"


class StatusIdle(Event):
    type: Literal["session.status_idle"] = "session.status_idle"
    stop_reason: StopReason
    stop_details: StopDetails | None = None


class StatusRescheduled(Event):
    type: Literal["session.status_rescheduled"] = "session.status_rescheduled"


class StatusTerminated(Event):
    type: Literal["session.status_terminated"] = "session.status_terminated"


class ThreadStatus(Event):
    session_thread_id: str
    agent_name: str


class ThreadRunning(ThreadStatus):
    type: Literal["session.thread_status_running"] = "session.thread_status_running"


class ThreadIdle(ThreadStatus):
    type: Literal["session.thread_status_idle"] = "session.thread_status_idle"
    stop_reason: StopReason
    stop_details: StopDetails | None = None


class ThreadRescheduled(ThreadStatus):
    type: Literal["session.thread_status_rescheduled"] = "session.thread_status_rescheduled"


class ThreadTerminated(ThreadStatus):
    type: Literal["session.thread_status_terminated"] = "session.thread_status_terminated"


class RetryStatus(Wire):
    type: Literal["retrying", "exhausted", "terminal"]


PlainErrorType: TypeAlias = Literal[
    "unknown_error",
    "model_overloaded_error",
    "model_rate_limited_error",
    "model_request_failed_error",
    "billing_error",
    "tool_use_limit_reached_error",
    "compaction_limit_reached_error",
]


class PlainError(Wire):
    type: PlainErrorType
    message: str
    retry_status: RetryStatus


class McpServerError(Wire):
    type: Literal["mcp_connection_failed_error", "mcp_authentication_failed_error"]
    message: str
    retry_status: RetryStatus
    mcp_server_name: str


class CredentialError(Wire):
    type: Literal["credential_host_unreachable_error"] = "credential_host_unreachable_error"
    message: str
    retry_status: RetryStatus
    vault_id: str
    credential_id: str


AnyError: TypeAlias = PlainError | McpServerError | CredentialError


class SessionError(Event):
    type: Literal["session.error"] = "session.error"
    error: Annotated[AnyError, Field(discriminator="type")]


class SessionUsageReport(Event):
    type: Literal["session.usage"] = "session.usage"
    usage: SessionUsage


class SessionUpdated(Event):
    """Only the fields that changed. A `metadata` is the whole new bag."""

    type: Literal["session.updated"] = "session.updated"
    title: str | None = None
    metadata: dict[str, str] | None = None
    agent: SessionAgent | None = None


class SessionDeleted(Event):
    type: Literal["session.deleted"] = "session.deleted"


class ModelRequestStart(Event):
    type: Literal["span.model_request_start"] = "span.model_request_start"


class ModelUsage(Wire):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    speed: Literal["standard", "fast"] | None = None


class ModelRequestEnd(Event):
    type: Literal["span.model_request_end"] = "span.model_request_end"
    model_request_start_id: str
    model_usage: ModelUsage
    is_error: bool | None = None


ClientEvent: TypeAlias = UserMessage | UserInterrupt | UserToolConfirmation | UserCustomToolResult | SystemMessage
AnyEvent: TypeAlias = (
    ClientEvent
    | AgentMessage
    | AgentThinking
    | AgentToolUse
    | AgentToolResult
    | AgentMcpToolUse
    | AgentMcpToolResult
    | AgentCustomToolUse
    | StatusRunning
    | StatusIdle
    | StatusRescheduled
    | StatusTerminated
    | ThreadRunning
    | ThreadIdle
    | ThreadRescheduled
    | ThreadTerminated
    | SessionError
    | SessionUsageReport
    | SessionUpdated
    | SessionDeleted
    | ModelRequestStart
    | ModelRequestEnd
)
