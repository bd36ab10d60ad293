"""Drafts of the rows that the brain appends. Pure but for the ids, which are made here."""

from collections.abc import Iterable

from galley_server.hands.permission import Custom, Denied, Governed, rule
from galley_server.hands.port import ToolCall
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.row import Draft
from galley_server.log.state import SessionState
from galley_server.wire import events as ev
from galley_server.wire.agent import SessionAgent
from galley_server.wire.usage import SessionUsage


def event_draft(event: ev.AnyEvent) -> Draft:
    return Draft(event.id, event.type, event.model_dump_json(exclude_none=True).encode())


def internal_draft(row: internal.Internal) -> Draft:
    # In a change, unset means unchanged and null means cleared: only what was given is written.
    unset = set(type(row).model_fields) - row.model_fields_set - {"type"}
    left_out = unset if isinstance(row, internal.SessionChanged) else None
    return Draft(new_id("irow"), row.type, row.model_dump_json(exclude=left_out).encode())


def processed(ids: Iterable[str], *, dropped: bool = False) -> list[Draft]:
    return [internal_draft(internal.Processed(event_id=event_id, dropped=dropped)) for event_id in ids]


def running(state: SessionState, agent: SessionAgent) -> list[Draft]:
    """The rows that open a turn or resume one, none if it is open."""
    if state.status == "running":
        return []
    rows = [
        event_draft(ev.StatusRunning(id=new_id("sevt"))),
        event_draft(ev.ThreadRunning(id=new_id("sevt"), session_thread_id=state.thread_id, agent_name=agent.name)),
    ]
    if state.status == "idle" and not isinstance(state.stop_reason, ev.RequiresAction):
        rows += [event_draft(_unreachable(server.name)) for server in agent.mcp_servers]
    return rows


def _unreachable(server: str) -> ev.SessionError:
    error = ev.McpServerError(
        type="mcp_connection_failed_error",
        mcp_server_name=server,
        message=f"The MCP server {server!r} is not reachable: this Galley server has no vault proxy.",
        retry_status=ev.RetryStatus(type="exhausted"),
    )
    return ev.SessionError(id=new_id("sevt"), error=error)


def idle(
    state: SessionState,
    agent: SessionAgent,
    usage: SessionUsage,
    reason: ev.StopReason,
    details: ev.StopDetails | None = None,
) -> list[Draft]:
    """The rows that end a turn or block it. The report of usage comes right before the session's own status."""
    thread = ev.ThreadIdle(
        id=new_id("sevt"),
        session_thread_id=state.thread_id,
        agent_name=agent.name,
        stop_reason=reason,
        stop_details=details,
    )
    return [
        event_draft(thread),
        event_draft(ev.SessionUsageReport(id=new_id("sevt"), usage=usage)),
        event_draft(ev.StatusIdle(id=new_id("sevt"), stop_reason=reason, stop_details=details)),
    ]


def rescheduled(state: SessionState, agent: SessionAgent) -> list[Draft]:
    thread = ev.ThreadRescheduled(id=new_id("sevt"), session_thread_id=state.thread_id, agent_name=agent.name)
    return [event_draft(thread), event_draft(ev.StatusRescheduled(id=new_id("sevt")))]


def session_error(error: ev.PlainError) -> Draft:
    return event_draft(ev.SessionError(id=new_id("sevt"), error=error))


def request_end(request_id: str, usage: ev.ModelUsage, *, is_error: bool) -> Draft:
    return event_draft(
        ev.ModelRequestEnd(
            id=new_id("sevt"), model_request_start_id=request_id, model_usage=usage, is_error=is_error or None
        )
    )


def tool_use(agent: SessionAgent, call: ToolCall) -> Draft:
    """A call as the model made it, with what the agent's policy says to it."""
    called = {"id": call.event_id, "name": call.name, "input": dict(call.input)}
    ruling = rule(agent, call.name)
    match ruling:
        case Custom():
            return event_draft(ev.AgentCustomToolUse.model_validate(called))
        case Denied():
            return event_draft(ev.AgentToolUse.model_validate({**called, "evaluated_permission": "deny"}))
        case Governed(permission=permission):
            evaluation = ev.AlwaysAllowed() if permission == "allow" else ev.AlwaysAsked()
            judged = {"evaluated_permission": permission, "evaluation": evaluation}
            return event_draft(ev.AgentToolUse.model_validate({**called, **judged}))
