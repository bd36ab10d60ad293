"""`decide` over tables of rows: what a session does next, without a model."""

from datetime import UTC, datetime, timedelta

import pytest
from galley_server.brain.decide import (
    CallModel,
    CloseRequest,
    FindReach,
    GoIdle,
    Interrupt,
    Refuse,
    Rest,
    RetryPolicy,
    RunTools,
    Step,
    Wait,
    decide,
)
from galley_server.brain.drafts import event_draft, internal_draft
from galley_server.log import internal
from galley_server.log.row import Row
from galley_server.log.state import SessionState, fold
from galley_server.wire import events as ev
from galley_server.wire.agent import (
    AgentToolset,
    AlwaysAllow,
    McpServer,
    McpToolset,
    ModelConfig,
    SessionAgent,
    ToolDefault,
)
from galley_server.wire.base import JSON
from galley_server.wire.content import TextBlock
from galley_server.wire.environment import Limited

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
AGENT = SessionAgent(
    id="agent_1",
    version=1,
    name="cook",
    description=None,
    model=ModelConfig(id="m"),
    system=None,
    tools=(AgentToolset(default_config=ToolDefault(enabled=True, permission_policy=AlwaysAllow()), configs=()),),
    mcp_servers=(),
)
CREATED = internal.SessionCreated(agent=AGENT, environment_id="env_1", thread_id="sthr_1")
RUNNING = ev.StatusRunning(id="sevt_run")
HELLO = ev.UserMessage(id="sevt_hello", content=(TextBlock(text="hello"),))
TAKEN = internal.Processed(event_id="sevt_hello")
START = ev.ModelRequestStart(id="sevt_start")
END = ev.ModelRequestEnd(id="sevt_end", model_request_start_id="sevt_start", model_usage=ev.ModelUsage())
TURN = (CREATED, HELLO, TAKEN, RUNNING, START)


def state_of(*contents: ev.AnyEvent | internal.Internal) -> SessionState:
    """Fold these as rows, a second apart. Events keep their ids; internal rows get one from their position."""
    rows = [
        Row(
            seq,
            getattr(content, "id", f"irow_{seq}"),
            content.type,
            (event_draft(content) if isinstance(content, ev.Event) else internal_draft(content)).body,
            NOW + timedelta(seconds=seq),
        )
        for seq, content in enumerate(contents, start=1)
    ]
    return fold(rows)


def step_of(*contents: ev.AnyEvent | internal.Internal, max_rounds: int | None = 10) -> Step:
    return decide(state_of(*contents), now=NOW + timedelta(hours=1), max_rounds=max_rounds)


def answer(
    *names: str, stop_reason: str = "tool_use", ask: tuple[str, ...] = (), custom: tuple[str, ...] = ()
) -> tuple[ev.AnyEvent | internal.Internal, ...]:
    """An answer that calls these tools: event ids `sevt_<name>`, tool ids `toolu_<name>`."""
    calls = {f"toolu_{name}": f"sevt_{name}" for name in names}
    blocks = tuple({"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {}} for name in names)
    uses: list[ev.AnyEvent] = []
    for name in names:
        if name in custom:
            uses.append(ev.AgentCustomToolUse(id=f"sevt_{name}", name=name, input={}))
        else:
            permission: ev.Permission = "ask" if name in ask else "allow"
            uses.append(ev.AgentToolUse(id=f"sevt_{name}", name=name, input={}, evaluated_permission=permission))
    return (
        internal.Assistant(request_id="sevt_start", blocks=blocks, calls=calls, stop_reason=stop_reason),  # type: ignore[arg-type]
        *uses,
        END,
    )


def result(name: str) -> ev.AgentToolResult:
    return ev.AgentToolResult(id=f"sevt_{name}_result", tool_use_id=f"sevt_{name}", content=(TextBlock(text="ok"),))


def confirm(name: str, verdict: str = "allow") -> ev.UserToolConfirmation:
    return ev.UserToolConfirmation(id=f"sevt_{name}_{verdict}", tool_use_id=f"sevt_{name}", result=verdict)  # type: ignore[arg-type]


def blocked_on(*names: str) -> ev.StatusIdle:
    ids = tuple(f"sevt_{name}" for name in names)
    return ev.StatusIdle(id="sevt_blocked", stop_reason=ev.RequiresAction(event_ids=ids))


def ids_of(step: Step) -> list[str]:
    assert isinstance(step, RunTools | Refuse)
    return [call.event_id for call in step.calls]


def test_a_new_session_rests() -> None:
    assert step_of(CREATED) == Rest()


def test_a_queued_message_calls_the_model() -> None:
    assert step_of(CREATED, HELLO) == CallModel(take=("sevt_hello",))


def test_a_cut_off_request_is_closed_before_anything_else() -> None:
    assert step_of(*TURN) == CloseRequest("sevt_start")


def test_a_turn_without_an_answer_asks_again() -> None:
    assert step_of(*TURN, END) == CallModel()


def test_an_answer_without_calls_ends_the_turn() -> None:
    assert step_of(*TURN, *answer(stop_reason="end_turn")) == GoIdle(ev.EndTurn())


def test_a_message_that_came_meanwhile_is_taken_before_the_turn_ends() -> None:
    late = HELLO.model_copy(update={"id": "sevt_late"})
    assert step_of(*TURN, *answer(stop_reason="end_turn"), late) == CallModel(take=("sevt_late",))


def test_a_paused_answer_is_continued() -> None:
    assert step_of(*TURN, *answer(stop_reason="pause_turn")) == CallModel()


def test_calls_are_run_in_block_order() -> None:
    assert ids_of(step_of(*TURN, *answer("read", "bash"))) == ["sevt_read", "sevt_bash"]


def test_only_unanswered_calls_are_run() -> None:
    assert ids_of(step_of(*TURN, *answer("read", "bash"), result("read"))) == ["sevt_bash"]


def test_answered_calls_go_back_to_the_model() -> None:
    assert step_of(*TURN, *answer("read"), result("read")) == CallModel()


def test_a_message_waits_until_the_open_calls_are_answered() -> None:
    late = HELLO.model_copy(update={"id": "sevt_late"})
    assert ids_of(step_of(*TURN, *answer("bash"), late)) == ["sevt_bash"]


def test_a_call_that_must_be_asked_blocks_the_session() -> None:
    assert step_of(*TURN, *answer("bash", ask=("bash",))) == GoIdle(ev.RequiresAction(event_ids=("sevt_bash",)))


def test_a_blocked_session_rests_until_it_is_answered() -> None:
    assert step_of(*TURN, *answer("bash", ask=("bash",)), blocked_on("bash")) == Rest()


def test_what_does_not_depend_on_the_asked_call_runs_first() -> None:
    assert ids_of(step_of(*TURN, *answer("read", "bash", ask=("bash",)))) == ["sevt_read"]


def test_a_writer_behind_an_asked_call_waits_with_it() -> None:
    step = step_of(*TURN, *answer("write", "bash", ask=("write",)))
    assert step == GoIdle(ev.RequiresAction(event_ids=("sevt_write",)))


def test_a_reader_behind_a_held_writer_waits_too() -> None:
    step = step_of(*TURN, *answer("grep", "write", "read", ask=("grep",)))
    assert step == GoIdle(ev.RequiresAction(event_ids=("sevt_grep",)))


def test_a_partial_answer_shows_what_is_still_missing() -> None:
    asked = ("write", "edit")
    rows = (*TURN, *answer("write", "edit", ask=asked), blocked_on("write", "edit"), confirm("write"))
    assert step_of(*rows) == GoIdle(ev.RequiresAction(event_ids=("sevt_edit",)))


def test_nothing_runs_before_the_last_answer() -> None:
    asked = ("write", "edit")
    rows = (*TURN, *answer("write", "edit", ask=asked), blocked_on("write", "edit"), confirm("write"), confirm("edit"))
    assert ids_of(step_of(*rows)) == ["sevt_write", "sevt_edit"]


def test_a_denied_call_is_answered_without_running() -> None:
    step = step_of(*TURN, *answer("bash", ask=("bash",)), blocked_on("bash"), confirm("bash", "deny"))
    assert isinstance(step, Refuse)
    assert ids_of(step) == ["sevt_bash"]


def test_a_custom_call_waits_for_the_client() -> None:
    step = step_of(*TURN, *answer("weather", custom=("weather",)))
    assert step == GoIdle(ev.RequiresAction(event_ids=("sevt_weather",)))


def test_a_custom_call_delays_no_sandbox_call() -> None:
    assert ids_of(step_of(*TURN, *answer("weather", "bash", custom=("weather",)))) == ["sevt_bash"]


def test_a_custom_result_goes_back_to_the_model() -> None:
    given = ev.UserCustomToolResult(id="sevt_given", custom_tool_use_id="sevt_weather")
    rows = (*TURN, *answer("weather", custom=("weather",)), blocked_on("weather"), given)
    assert step_of(*rows[:-1]) == Rest()
    assert step_of(*rows) == CallModel()


def test_an_interrupt_comes_before_queued_messages() -> None:
    late = HELLO.model_copy(update={"id": "sevt_late"})
    assert step_of(*TURN, late, ev.UserInterrupt(id="sevt_stop")) == Interrupt(ends_turn=True)


def test_an_interrupt_of_an_idle_session_ends_nothing() -> None:
    assert step_of(CREATED, ev.UserInterrupt(id="sevt_stop")) == Interrupt(ends_turn=False)


def test_an_interrupt_ends_a_blocked_turn() -> None:
    rows = (*TURN, *answer("bash", ask=("bash",)), blocked_on("bash"), ev.UserInterrupt(id="sevt_stop"))
    assert step_of(*rows) == Interrupt(ends_turn=True)


def test_a_failed_request_waits_for_its_time() -> None:
    later = NOW + timedelta(hours=2)
    rows = (*TURN, END, ev.StatusRescheduled(id="sevt_r"), internal.RetryAt(attempt=1, not_before=later))
    assert step_of(*rows) == Wait(later)


def test_after_its_time_a_failed_request_is_made_again() -> None:
    rows = (*TURN, END, ev.StatusRescheduled(id="sevt_r"), internal.RetryAt(attempt=1, not_before=NOW))
    assert step_of(*rows) == CallModel()


def test_a_dead_turn_flushes_the_queue() -> None:
    late = HELLO.model_copy(update={"id": "sevt_late"})
    step = step_of(*TURN, END, internal.TurnFailed(), late)
    assert step == GoIdle(ev.RetriesExhausted(), flush=("sevt_late",))


def test_a_refusal_is_named() -> None:
    step = step_of(*TURN, *answer(stop_reason="refusal"))
    assert isinstance(step, GoIdle)
    assert step.stop_reason == ev.Refusal()


def test_too_many_rounds_end_the_turn_with_an_error() -> None:
    step = step_of(*TURN, *answer("read"), result("read"), max_rounds=1)
    assert isinstance(step, GoIdle)
    assert step.error is not None
    assert step.error.type == "tool_use_limit_reached_error"


def test_a_model_that_pauses_for_ever_is_ended_too() -> None:
    pause = answer(stop_reason="pause_turn")
    step = step_of(*TURN, *pause, *pause, max_rounds=2)
    assert isinstance(step, GoIdle)
    assert step.stop_reason == ev.RetriesExhausted()


def test_a_terminated_session_does_nothing_more() -> None:
    assert step_of(CREATED, ev.StatusTerminated(id="sevt_t"), HELLO) == Rest()


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (9, 30.0)])
def test_waits_double_up_to_the_longest(attempt: int, seconds: float) -> None:
    assert RetryPolicy().wait(attempt, asked=None, jitter=0) == timedelta(seconds=seconds)


def test_what_the_endpoint_asked_for_counts_up_to_the_longest_wait() -> None:
    assert RetryPolicy().wait(1, asked=7, jitter=0) == timedelta(seconds=7)
    assert RetryPolicy().wait(1, asked=3600, jitter=0) == timedelta(seconds=30)


LISTED = internal.McpListed(servers=())
SERVED = AGENT.model_copy(
    update={
        "mcp_servers": (McpServer(name="up", url="https://up.example/mcp"),),
        "tools": (
            McpToolset(
                mcp_server_name="up",
                default_config=ToolDefault(enabled=True, permission_policy=AlwaysAllow()),
                configs=(),
            ),
        ),
    }
)
WITH_SERVER = CREATED.model_copy(update={"agent": SERVED})
IDLE = ev.StatusIdle(id="sevt_idle", stop_reason=ev.EndTurn())


def test_servers_are_asked_for_their_tools_before_the_model_is_asked() -> None:
    assert step_of(WITH_SERVER, HELLO) == FindReach()
    assert step_of(WITH_SERVER, HELLO, RUNNING) == FindReach()
    assert step_of(WITH_SERVER, HELLO, RUNNING, LISTED) == CallModel(take=("sevt_hello",))


def test_servers_are_asked_once_in_a_turn_and_again_in_the_next() -> None:
    turn = (WITH_SERVER, HELLO, RUNNING, LISTED, TAKEN, START)
    assert step_of(*turn, END) == CallModel()
    late = HELLO.model_copy(update={"id": "sevt_late"})
    assert step_of(*turn, *answer(stop_reason="end_turn"), IDLE, late) == FindReach()


def test_an_answer_to_a_question_is_no_new_turn() -> None:
    asked = (WITH_SERVER, HELLO, RUNNING, LISTED, TAKEN, START, *answer("bash", ask=("bash",)), blocked_on("bash"))
    resumed = RUNNING.model_copy(update={"id": "sevt_again"})
    assert step_of(*asked, confirm("bash"), resumed, result("bash")) == CallModel()


def test_credentials_are_looked_at_where_the_environment_may_shut_their_hosts_off() -> None:
    closed = Limited(allowed_hosts=(), allow_mcp_servers=False, allow_package_managers=False)
    limited = CREATED.model_copy(update={"vault_ids": ("vlt_1",), "networking": closed})
    assert step_of(limited, HELLO) == FindReach()
    assert step_of(CREATED.model_copy(update={"vault_ids": ("vlt_1",)}), HELLO) == CallModel(take=("sevt_hello",))


def test_an_interrupt_comes_before_the_servers() -> None:
    assert step_of(WITH_SERVER, HELLO, RUNNING, ev.UserInterrupt(id="sevt_stop")) == Interrupt(ends_turn=True)


def test_what_a_server_listed_stays_until_it_lists_otherwise_or_is_another() -> None:
    tool = internal.McpTool(name="a", input_schema={})
    first = internal.McpListing(server="up", url="https://up.example/mcp", tools=(tool,))
    kept = first.model_copy(update={"tools": None})
    moved = kept.model_copy(update={"url": "https://else.example"})
    state = state_of(WITH_SERVER, internal.McpListed(servers=(first,)), internal.McpListed(servers=(kept,)))
    assert state.mcp == {"up": first}
    assert state_of(WITH_SERVER, internal.McpListed(servers=(first,)), LISTED).mcp == {"up": first}
    assert state_of(WITH_SERVER, internal.McpListed(servers=(first,)), internal.McpListed(servers=(moved,))).mcp == {
        "up": moved
    }


def test_calls_of_servers_wait_for_nobody_and_nobody_waits_for_them() -> None:
    calls = {f"toolu_{name}": f"sevt_{name}" for name in ("one", "bash", "two")}
    blocks: tuple[dict[str, JSON], ...] = tuple(
        {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {}} for name in ("one", "bash", "two")
    )
    uses = (
        # A server may call its tool as one of ours is called.
        ev.AgentMcpToolUse(id="sevt_one", mcp_server_name="up", name="bash", input={}, evaluated_permission="ask"),
        ev.AgentToolUse(id="sevt_bash", name="bash", input={}, evaluated_permission="allow"),
        ev.AgentMcpToolUse(id="sevt_two", mcp_server_name="up", name="write", input={}, evaluated_permission="allow"),
    )
    assistant = internal.Assistant(request_id="sevt_start", blocks=blocks, calls=calls, stop_reason="tool_use")
    assert ids_of(step_of(*TURN, assistant, *uses, END)) == ["sevt_bash", "sevt_two"]


def test_a_dispatch_to_a_server_leaves_the_sandbox_as_it_was() -> None:
    use = ev.AgentMcpToolUse(id="sevt_one", mcp_server_name="up", name="a", input={}, evaluated_permission="allow")
    state = state_of(
        *TURN,
        *answer("bash"),
        internal.Dispatch(tool_use_id="sevt_bash", incarnation="inc_1"),
        use,
        internal.Dispatch(tool_use_id="sevt_one"),
    )
    assert state.incarnation == "inc_1"
    assert (state.calls["sevt_one"].dispatched, state.calls["sevt_one"].incarnation) == (True, None)
