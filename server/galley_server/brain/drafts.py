"""Drafts of the rows that the brain appends. Pure but for the ids, which are made here."""

from collections.abc import Iterable

from galley_server.hands.permission import Custom, Denied, Governed, Ruling
from galley_server.hands.port import CredentialFault, Reach, ServerFault, ToolCall, ToolOutcome
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
    return [
        event_draft(ev.StatusRunning(id=new_id("sevt"))),
        event_draft(ev.ThreadRunning(id=new_id("sevt"), session_thread_id=state.thread_id, agent_name=agent.name)),
    ]


def reached(state: SessionState, reach: Reach) -> list[Draft]:
    """What the servers offer, where it is not what they offered before, and what is out of reach.

    `retrying`, because the session goes on without it and the next turn tries again.
    """
    news = tuple(
        listing.model_copy(update={"tools": None}) if state.mcp.get(listing.server) == listing else listing
        for listing in reach.servers
    )
    again = ev.RetryStatus(type="retrying")
    rows = [internal_draft(internal.McpListed(servers=news))]
    for fault in reach.faults:
        match fault:
            case ServerFault(server=server, message=message, type=kind):
                error: ev.AnyError = ev.McpServerError(
                    type=kind, mcp_server_name=server, message=message, retry_status=again
                )
            case CredentialFault(vault_id=vault_id, credential_id=credential_id, message=message):
                error = ev.CredentialError(
                    vault_id=vault_id, credential_id=credential_id, message=message, retry_status=again
                )
        rows.append(session_error(error))
    return rows


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


def session_error(error: ev.AnyError) -> Draft:
    return event_draft(ev.SessionError(id=new_id("sevt"), error=error))


def request_end(request_id: str, usage: ev.ModelUsage, *, is_error: bool) -> Draft:
    return event_draft(
        ev.ModelRequestEnd(
            id=new_id("sevt"), model_request_start_id=request_id, model_usage=usage, is_error=is_error or None
        )
    )


def tool_use(call: ToolCall, ruling: Ruling) -> Draft:
    """A call as the model made it, with what the agent's policy says to it."""
    called: dict[str, object] = {"id": call.event_id, "name": call.name, "input": dict(call.input)}
    match ruling:
        case Custom():
            return event_draft(ev.AgentCustomToolUse.model_validate(called))
        case Denied():
            judged: dict[str, object] = {"evaluated_permission": "deny"}
        case Governed(permission=permission):
            evaluation = ev.AlwaysAllowed() if permission == "allow" else ev.AlwaysAsked()
            judged = {"evaluated_permission": permission, "evaluation": evaluation}
    if call.server is not None:
        return event_draft(ev.AgentMcpToolUse.model_validate({**called, **judged, "mcp_server_name": call.server}))
    return event_draft(ev.AgentToolUse.model_validate({**called, **judged}))


def tool_result(call_id: str, server: str | None, outcome: ToolOutcome) -> Draft:
    is_error = outcome.is_error or None
    if server is None:
        return event_draft(
            ev.AgentToolResult(id=new_id("sevt"), tool_use_id=call_id, content=outcome.content, is_error=is_error)
        )
    return event_draft(
        ev.AgentMcpToolResult(id=new_id("sevt"), mcp_tool_use_id=call_id, content=outcome.content, is_error=is_error)
    )
