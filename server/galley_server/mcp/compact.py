"""Events as a model should read them: what was said and done, without bookkeeping, bounded. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import ConfigDict

from galley_server.mcp.tool import Output
from galley_server.runtime.events import ShownEvent
from galley_server.wire.base import JSON

COMPACT_TYPES: Final = frozenset(
    {
        "user.message",
        "user.interrupt",
        "user.tool_confirmation",
        "user.custom_tool_result",
        "system.message",
        "agent.message",
        "agent.tool_use",
        "agent.tool_result",
        "agent.mcp_tool_use",
        "agent.mcp_tool_result",
        "agent.custom_tool_use",
        "session.error",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_terminated",
        "session.updated",
        "session.deleted",
    }
)
"""The types of the compact view. Spans, usage, thinking and the echoes of a thread's status are for machines."""

_CALL_IDS: Final = ("tool_use_id", "custom_tool_use_id", "mcp_tool_use_id")

MAX_TEXT: Final = 4_000
MAX_TOTAL: Final = 30_000
MAX_FULL_EVENT: Final = 100_000
MAX_FULL_TOTAL: Final = 200_000


class CompactEvent(Output):
    """One event. `server`: the MCP server whose tool it is. `cut`: text was left out; view "full" has all of it."""

    type: str
    id: str
    text: str | None = None
    tool: str | None = None
    server: str | None = None
    input: dict[str, JSON] | None = None
    tool_use_id: str | None = None
    decision: Literal["allow", "deny"] | None = None
    is_error: bool | None = None
    needs: Literal["confirm_tool"] | None = None
    stop_reason: str | None = None
    waiting_for: list[str] | None = None
    queued: bool | None = None
    cut: bool | None = None


class FullEvent(Output):
    """One event in the official shape of the Managed Agents API."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JSON]

    type: str
    id: str


def compact(event: ShownEvent) -> CompactEvent:
    body: Mapping[str, Any] = json.loads(event.body)
    text, cut = _cut(_text_of(body))
    tool_input, cut_input = _cut_input(body.get("input"))
    stop: Mapping[str, Any] = body.get("stop_reason") or {}
    return CompactEvent(
        type=event.type,
        id=event.event_id,
        text=text or None,
        tool=body.get("name"),
        server=body.get("mcp_server_name"),
        input=tool_input,
        tool_use_id=next((body[key] for key in _CALL_IDS if key in body), None),
        decision=body.get("result"),
        is_error=body.get("is_error"),
        needs="confirm_tool" if body.get("evaluated_permission") == "ask" else None,
        stop_reason=stop.get("type"),
        waiting_for=stop.get("event_ids"),
        queued=True if event.type == "user.message" and event.processed_at is None else None,
        cut=True if cut or cut_input else None,
    )


def full(event: ShownEvent) -> FullEvent:
    if len(event.body) <= MAX_FULL_EVENT:
        return FullEvent.model_validate_json(event.body)
    note = f"{len(event.body)} bytes, too many for a tool's result: read it over HTTP, or with view compact"
    return FullEvent.model_validate({"type": event.type, "id": event.event_id, "left_out": note})


def fitting(sizes: Sequence[int], total: int) -> int:
    """How many of the first items fit in a total, at least one."""
    used = 0
    for count, size in enumerate(sizes):
        used += size
        if used > total and count:
            return count
    return len(sizes)


def _text_of(body: Mapping[str, Any]) -> str:
    if (error := body.get("error")) is not None:
        return f"{error['type']}: {error['message']} ({error['retry_status']['type']})"
    if body.get("deny_message"):
        return str(body["deny_message"])
    blocks = body.get("content") or []
    return "\n".join(str(block["text"]) if "text" in block else f"[{block['type']}]" for block in blocks)


def _cut(text: str) -> tuple[str, bool]:
    """The middle is what is missed least: how output begins and how it ends says most."""
    if len(text) <= MAX_TEXT:
        return text, False
    half = MAX_TEXT // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}", True


def _cut_input(value: Mapping[str, JSON] | None) -> tuple[dict[str, JSON] | None, bool]:
    if value is None:
        return None, False
    shown: dict[str, JSON] = {}
    cut = False
    for name, item in value.items():
        if isinstance(item, str):
            shown[name], was_cut = _cut(item)
            cut = cut or was_cut
        elif len(json.dumps(item)) > MAX_TEXT:
            shown[name], cut = "[left out]", True
        else:
            shown[name] = item
    return shown, cut
