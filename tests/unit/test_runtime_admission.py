"""Which client events a session takes: answers to calls that wait for one, once each."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from galley_server.errors import InvalidRequest
from galley_server.log.row import Row
from galley_server.runtime.admission import KnownCall, admit, known_calls
from galley_server.wire.event_request import AnyClientEvent, EventsSend
from galley_server.wire.validation import take

AT = datetime(2026, 11, 23, 8, tzinfo=UTC)
ASKS = KnownCall(custom=False, asks=True)
CUSTOM = KnownCall(custom=True, asks=False)


def rows(*bodies: dict[str, object]) -> list[Row]:
    return [
        Row(seq, str(body.get("id", "irow_1")), str(body["type"]), json.dumps(body).encode(), AT)
        for seq, body in enumerate(bodies, 1)
    ]


def use(call_id: str, **more: object) -> dict[str, object]:
    return {"id": call_id, "type": "agent.tool_use", "name": "bash", "input": {}, **more}


def confirm(call_id: str) -> dict[str, object]:
    return {"type": "user.tool_confirmation", "tool_use_id": call_id, "result": "allow"}


def result(call_id: str) -> dict[str, object]:
    return {"type": "user.custom_tool_result", "custom_tool_use_id": call_id}


def sent(*events: Mapping[str, object]) -> tuple[AnyClientEvent, ...]:
    return take(EventsSend, {"events": list(events)}).events


def check(*events: Mapping[str, object], blocked: bool = False, **calls: KnownCall) -> None:
    admit(sent(*events), calls, thread_id="sthr_1", blocked=blocked)


def test_the_log_says_what_became_of_each_call() -> None:
    calls = known_calls(
        rows(
            use("a", evaluated_permission="ask"),
            use("b", evaluated_permission="allow"),
            {"id": "c", "type": "agent.custom_tool_use", "name": "t", "input": {}},
            {"id": "d", "type": "agent.custom_tool_use", "name": "t", "input": {}},
            {"id": "e", **confirm("a")},
            {"id": "f", "type": "agent.tool_result", "tool_use_id": "b"},
            {"id": "g", **result("c")},
            {"type": "internal.call_closed", "custom_tool_use_id": "d"},
            {"id": "h", "type": "agent.tool_result", "tool_use_id": "of an earlier turn"},
        )
    )
    assert calls == {
        "a": KnownCall(custom=False, asks=True, answered=True),
        "b": KnownCall(custom=False, asks=False, answered=True),
        "c": KnownCall(custom=True, asks=False, answered=True),
        "d": KnownCall(custom=True, asks=False, answered=True),
    }


def test_answers_to_waiting_calls_are_taken() -> None:
    check(confirm("a"), result("b"), a=ASKS, b=CUSTOM)


@pytest.mark.parametrize(
    ("event", "call", "says"),
    [
        (
            confirm("x"),
            ASKS,
            "events.1.tool_use_id: this session has no agent.tool_use or agent.mcp_tool_use event with the id 'x'",
        ),
        (result("x"), ASKS, "events.1.custom_tool_use_id: this session has no agent.custom_tool_use event"),
        (
            confirm("a"),
            CUSTOM,
            "events.1.tool_use_id: 'a' is a custom tool call; answer it with user.custom_tool_resul",
        ),
        (result("a"), ASKS, "events.1.custom_tool_use_id: 'a' is not a custom tool call"),
        (confirm("a"), KnownCall(custom=False, asks=False), "events.1.tool_use_id: 'a' is not awaiting a confirmation"),
        (
            confirm("a"),
            KnownCall(custom=False, asks=True, answered=True),
            "events.1.tool_use_id: 'a' was already answer",
        ),
        (result("a"), KnownCall(custom=True, asks=False, answered=True), "'a' was already answered"),
        (
            {"type": "user.interrupt", "session_thread_id": "sthr_2"},
            ASKS,
            "events.1.session_thread_id: 'sthr_2' is not",
        ),
    ],
)
def test_what_fits_no_waiting_call_is_refused_by_its_index(
    event: dict[str, object], call: KnownCall, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check({"type": "user.interrupt"}, event, a=call)
    assert says in refused.value.message


def test_one_request_does_not_answer_twice() -> None:
    with pytest.raises(InvalidRequest, match=r"events\.1\.tool_use_id: 'a' was already answered"):
        check(confirm("a"), confirm("a"), a=ASKS)


def test_an_interrupt_may_name_the_sessions_own_thread() -> None:
    check({"type": "user.interrupt", "session_thread_id": "sthr_1"})


def test_while_action_is_required_a_system_message_comes_only_with_a_tool_result() -> None:
    message = {"type": "user.message", "content": [{"type": "text", "text": "a"}]}
    system = {"type": "system.message", "content": [{"type": "text", "text": "s"}]}
    check(message, system)
    check(result("a"), system, blocked=True, a=CUSTOM)
    with pytest.raises(InvalidRequest, match=r"events\.1: while the session requires action"):
        check(message, system, blocked=True)
