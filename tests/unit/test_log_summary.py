"""The summary of a session, row by row."""

from datetime import UTC, datetime, timedelta

from galley_server.brain.drafts import event_draft, internal_draft
from galley_server.log import internal
from galley_server.log.row import Row
from galley_server.log.summary import SessionSummaries, Summary, summarise
from galley_server.wire import events as ev
from galley_server.wire.agent import ModelConfig, SessionAgent
from galley_server.wire.content import TextBlock

BEGAN = datetime(2026, 5, 1, tzinfo=UTC)
AGENT = SessionAgent(
    id="agent_1",
    version=3,
    name="cook",
    description=None,
    model=ModelConfig(id="m"),
    system=None,
    tools=(),
    mcp_servers=(),
)
CREATED = internal.SessionCreated(agent=AGENT, environment_id="env_1", thread_id="sthr_1", title="Soup")
HELLO = ev.UserMessage(id="sevt_1", content=(TextBlock(text="hi"),))
TAKEN = internal.Processed(event_id="sevt_1")
RUNNING = ev.StatusRunning(id="sevt_r")
IDLE = ev.StatusIdle(id="sevt_i", stop_reason=ev.EndTurn())


def summary_of(*contents: ev.AnyEvent | internal.Internal) -> Summary:
    """Fold these as rows, a second apart."""
    summary = None
    for seq, content in enumerate((CREATED, *contents), start=1):
        draft = event_draft(content) if isinstance(content, ev.Event) else internal_draft(content)
        summary = summarise(summary, Row(seq, draft.id, draft.type, draft.body, BEGAN + timedelta(seconds=seq)))
    assert summary is not None
    return summary


def test_a_new_session_is_idle_and_needs_nobody() -> None:
    summary = summary_of()
    assert (summary.status, summary.settled, summary.title, summary.agent_version) == ("idle", True, "Soup", 3)


def test_a_queued_message_unsettles_an_idle_session() -> None:
    assert summary_of(HELLO).settled is False


def test_a_turn_settles_when_it_ends() -> None:
    assert summary_of(HELLO, TAKEN, RUNNING).settled is False
    assert summary_of(HELLO, TAKEN, RUNNING, IDLE).settled is True


def test_a_message_that_is_still_queued_keeps_an_ended_turn_unsettled() -> None:
    assert summary_of(HELLO, RUNNING, IDLE).settled is False


def test_a_result_for_a_blocked_session_unsettles_it() -> None:
    blocked = ev.StatusIdle(id="sevt_i", stop_reason=ev.RequiresAction(event_ids=("sevt_c",)))
    given = ev.UserCustomToolResult(id="sevt_g", custom_tool_use_id="sevt_c")
    assert summary_of(HELLO, TAKEN, RUNNING, blocked).settled is True
    assert summary_of(HELLO, TAKEN, RUNNING, blocked, given).settled is False


def test_a_blocked_session_is_shown_as_running_from_its_interrupt_to_the_end_of_the_turn() -> None:
    blocked = ev.StatusIdle(id="sevt_i", stop_reason=ev.RequiresAction(event_ids=("sevt_c",)))
    stop, processed = ev.UserInterrupt(id="sevt_s"), internal.Processed(event_id="sevt_s")
    assert summary_of(RUNNING, blocked, HELLO).shown_status == "idle"
    assert summary_of(RUNNING, blocked, HELLO, stop).shown_status == "running"
    ended = summary_of(RUNNING, blocked, stop, processed, IDLE)
    assert (ended.shown_status, ended.stop_reason, ended.settled) == ("idle", ev.EndTurn(), True)


def test_an_interrupt_that_had_nothing_to_end_settles_once_it_is_processed() -> None:
    stop, processed = ev.UserInterrupt(id="sevt_s"), internal.Processed(event_id="sevt_s")
    assert summary_of(stop).settled is False
    assert summary_of(stop, processed).settled is True


def test_a_change_of_title_leaves_a_settled_session_settled() -> None:
    summary = summary_of(internal.SessionChanged(title="Stew"), ev.SessionUpdated(id="sevt_u", title="Stew"))
    assert (summary.settled, summary.title, summary.agent_row) == (True, "Stew", 1)


def test_a_cleared_title_is_told_from_an_untouched_one() -> None:
    assert summary_of(internal.SessionChanged(title=None)).title is None
    assert summary_of(internal.SessionChanged(metadata={"a": "b"})).title == "Soup"


def test_active_time_counts_while_the_session_runs() -> None:
    assert summary_of(RUNNING, HELLO, IDLE, HELLO).usage.active_seconds == 2.0


def test_a_summary_survives_its_encoding() -> None:
    codec = SessionSummaries()
    summary = summary_of(HELLO, TAKEN, RUNNING, IDLE)
    assert codec.decode(codec.encode(summary)) == summary
