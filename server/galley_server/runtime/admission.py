"""Which client events a session takes now. Pure, no I/O here.

A client may answer a call as soon as the call is in the log, whether the session is blocked on it or still running.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, TypeAlias, assert_never

from pydantic import Field, TypeAdapter

from galley_server.errors import InvalidRequest
from galley_server.log.internal import CallClosed
from galley_server.log.row import Row
from galley_server.wire import events as ev
from galley_server.wire.event_request import (
    AnyClientEvent,
    SystemMessageParam,
    UserCustomToolResultParam,
    UserInterruptParam,
    UserMessageParam,
    UserToolConfirmationParam,
)

_CallRow: TypeAlias = Annotated[
    ev.AgentToolUse
    | ev.AgentMcpToolUse
    | ev.AgentCustomToolUse
    | ev.AgentToolResult
    | ev.AgentMcpToolResult
    | ev.UserToolConfirmation
    | ev.UserCustomToolResult
    | CallClosed,
    Field(discriminator="type"),
]
_CALL_ROW: Final[TypeAdapter[_CallRow]] = TypeAdapter(_CallRow)
CALL_TYPES: Final = frozenset(
    {
        "agent.tool_use",
        "agent.mcp_tool_use",
        "agent.custom_tool_use",
        "agent.tool_result",
        "agent.mcp_tool_result",
        "user.tool_confirmation",
        "user.custom_tool_result",
        "internal.call_closed",
    }
)
"""The rows that say what became of a call."""


@dataclass(frozen=True, slots=True)
class KnownCall:
    custom: bool
    asks: bool
    answered: bool = False


def answered_id(event: AnyClientEvent) -> str | None:
    """The call that an event answers."""
    match event:
        case UserToolConfirmationParam(tool_use_id=call_id) | UserCustomToolResultParam(custom_tool_use_id=call_id):
            return call_id
        case _:
            return None


def known_calls(rows: Iterable[Row]) -> dict[str, KnownCall]:
    """Fold rows of CALL_TYPES. Answers to calls from before the first row are passed over."""
    calls: dict[str, KnownCall] = {}
    for row in rows:
        content = _CALL_ROW.validate_json(row.body)
        match content:
            case ev.AgentToolUse() | ev.AgentMcpToolUse():
                calls[row.id] = KnownCall(custom=False, asks=content.evaluated_permission == "ask")
                continue
            case ev.AgentCustomToolUse():
                calls[row.id] = KnownCall(custom=True, asks=False)
                continue
            case ev.AgentToolResult(tool_use_id=call_id) | ev.UserToolConfirmation(tool_use_id=call_id):
                pass
            case ev.AgentMcpToolResult(mcp_tool_use_id=call_id):
                pass
            case ev.UserCustomToolResult(custom_tool_use_id=call_id) | CallClosed(custom_tool_use_id=call_id):
                pass
            case _:
                assert_never(content)
        if call_id in calls:
            calls[call_id] = replace(calls[call_id], answered=True)
    return calls


def admit(events: Sequence[AnyClientEvent], calls: Mapping[str, KnownCall], *, thread_id: str, blocked: bool) -> None:
    """Raise InvalidRequest, naming the event, unless the session takes all of them. `blocked`: it requires action."""
    taken: set[str] = set()
    for index, event in enumerate(events):
        match event:
            case UserMessageParam():
                pass
            case UserInterruptParam(session_thread_id=named):
                if named is not None and named != thread_id:
                    raise InvalidRequest(f"events.{index}.session_thread_id: '{named}' is not a thread of this session")
            case UserToolConfirmationParam(tool_use_id=call_id):
                _check_confirmation(f"events.{index}.tool_use_id", call_id, calls.get(call_id), taken)
            case UserCustomToolResultParam(custom_tool_use_id=call_id):
                _check_result(f"events.{index}.custom_tool_use_id", call_id, calls.get(call_id), taken)
            case SystemMessageParam():
                if blocked and isinstance(events[index - 1], UserMessageParam):
                    raise InvalidRequest(
                        f"events.{index}: while the session requires action, system.message should follow a tool result"
                    )
            case _:
                assert_never(event)


def _check_confirmation(place: str, call_id: str, call: KnownCall | None, taken: set[str]) -> None:
    if call is None:
        raise InvalidRequest(
            f"{place}: this session has no agent.tool_use or agent.mcp_tool_use event with the id '{call_id}'"
        )
    if call.custom:
        raise InvalidRequest(f"{place}: '{call_id}' is a custom tool call; answer it with user.custom_tool_result")
    if not call.asks:
        raise InvalidRequest(f"{place}: '{call_id}' is not awaiting a confirmation")
    _take(place, call_id, call, taken)


def _check_result(place: str, call_id: str, call: KnownCall | None, taken: set[str]) -> None:
    if call is None:
        raise InvalidRequest(f"{place}: this session has no agent.custom_tool_use event with the id '{call_id}'")
    if not call.custom:
        raise InvalidRequest(f"{place}: '{call_id}' is not a custom tool call; Galley itself runs it")
    _take(place, call_id, call, taken)


def _take(place: str, call_id: str, call: KnownCall, taken: set[str]) -> None:
    if call.answered or call_id in taken:
        raise InvalidRequest(f"{place}: '{call_id}' was already answered")
    taken.add(call_id)
