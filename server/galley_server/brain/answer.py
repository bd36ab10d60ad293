"""What a model's answer becomes in the log. Pure but for the ids."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic import ValidationError

from galley_server.brain.drafts import event_draft, internal_draft, request_end, session_error, tool_use
from galley_server.brain.model import Answer
from galley_server.hands.order import waits
from galley_server.hands.permission import Custom, Governed, Ruling, rule
from galley_server.hands.port import ToolCall
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.row import Draft
from galley_server.log.state import AssistantTurn, Turn
from galley_server.wire import events as ev
from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import JSON
from galley_server.wire.content import TextBlock

_CUT_OFF: Final = {
    "max_tokens": "The model's answer was cut off at the most output tokens that one request may have.",
    "model_context_window_exceeded": "The model's answer was cut off: the session fills the model's context window.",
}


@dataclass(frozen=True, slots=True)
class EventIds:
    """Ids that previews have already used for the events to come."""

    request: str
    message: str
    thinking: str


def called_ids(transcript: Iterable[Turn]) -> frozenset[str]:
    """Return every `toolu_` id of the transcript."""
    return frozenset(tool_id for turn in transcript if isinstance(turn, AssistantTurn) for tool_id in turn.calls)


Starts: TypeAlias = Callable[[ToolCall], internal.Dispatch | None]
"""Says where a call can be sent at once, None if that must be found out first."""


def answer_drafts(
    answer: Answer,
    agent: SessionAgent,
    ids: EventIds,
    *,
    listed: Mapping[str, internal.McpListing],
    taken: frozenset[str],
    starts: Starts,
) -> list[Draft]:
    """Return the rows of a complete answer, its span's end last. `taken` are the tool ids used before.

    A call that nothing holds up is dispatched by the very append that logs it: one wait for the disk less.
    """
    refused = answer.stop_reason == "refusal"
    blocks = () if refused else _with_own_ids(answer.blocks, taken)
    calls = {str(block["id"]): new_id("sevt") for block in blocks if block.get("type") == "tool_use"}
    assistant = internal.Assistant(
        request_id=ids.request,
        blocks=blocks,
        calls=calls,
        stop_reason=answer.stop_reason,
        stop_details=_stop_details(answer.stop_details) if refused else None,
    )
    rows = [internal_draft(assistant)]
    if any(block.get("type") in ("thinking", "redacted_thinking") for block in answer.blocks):
        rows.append(event_draft(ev.AgentThinking(id=ids.thinking)))
    texts = tuple(TextBlock(text=str(block.get("text", ""))) for block in blocks if block.get("type") == "text")
    if any(block.text.strip() for block in texts):
        rows.append(event_draft(ev.AgentMessage(id=ids.message, content=texts)))
    called = [block for block in blocks if block.get("type") == "tool_use"]
    for block, needed in zip(called, waits([str(block["name"]) for block in called]), strict=True):
        ruling = rule(agent, str(block["name"]), listed)
        call = _call(block, calls[str(block["id"])], ruling)
        rows.append(tool_use(call, ruling))
        if not needed and isinstance(ruling, Governed) and ruling.permission == "allow":
            dispatch = starts(call)
            if dispatch is not None:
                rows.append(internal_draft(dispatch))
    rows.append(request_end(ids.request, answer.usage, is_error=False))
    if answer.stop_reason in _CUT_OFF:
        rows.append(_cut_off(answer.stop_reason))
    return rows


def _call(block: Mapping[str, JSON], event_id: str, ruling: Ruling) -> ToolCall:
    """The call under the name that whoever runs it knows."""
    given = block["input"]
    named = given if isinstance(given, dict) else {}
    ref = None if isinstance(ruling, Custom) else ruling.mcp
    if ref is None:
        return ToolCall(event_id, str(block["name"]), named)
    return ToolCall(event_id, ref.tool, named, server=ref.server)


def _with_own_ids(blocks: Iterable[dict[str, JSON]], taken: frozenset[str]) -> tuple[dict[str, JSON], ...]:
    """The API refuses a doubled tool id, and not every endpoint takes care to make them unique."""
    seen = set(taken)
    kept: list[dict[str, JSON]] = []
    for block in blocks:
        if block.get("type") == "tool_use":
            tool_id = str(block.get("id") or "")
            if not tool_id or tool_id in seen:
                tool_id = new_id("toolu")
                block = {**block, "id": tool_id}
            seen.add(tool_id)
        kept.append(block)
    return tuple(kept)


def _stop_details(details: Mapping[str, JSON] | None) -> ev.StopDetails:
    """A category newer than this code is shown as none."""
    details = details or {}
    explanation = details.get("explanation")
    try:
        return ev.StopDetails.model_validate({"category": details.get("category"), "explanation": explanation})
    except ValidationError:
        return ev.StopDetails(explanation=explanation if isinstance(explanation, str) else None)


def _cut_off(stop_reason: str) -> Draft:
    retry = ev.RetryStatus(type="exhausted")
    return session_error(
        ev.PlainError(type="model_request_failed_error", message=_CUT_OFF[stop_reason], retry_status=retry)
    )
