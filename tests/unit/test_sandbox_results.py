"""What a hand answers is untrusted: anything but a well-formed, bounded result is misbehaviour."""

import json

import pytest
from galley_sandbox.errors import HandMisbehaved
from galley_sandbox.port import Acknowledged, Finished, MediaBlock, Running, TextBlock, ToolResult, Unknown
from galley_sandbox.results import parse_incarnation, parse_result, parse_state

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def raw(content: object, is_error: object = False) -> bytes:
    return json.dumps({"content": content, "is_error": is_error}).encode()


def test_good_results_are_read() -> None:
    assert parse_result(raw([])) == ToolResult((), False)
    assert parse_result(raw([{"type": "text", "text": "x"}], True)) == ToolResult((TextBlock("x"),), True)
    assert parse_result(raw([IMAGE])).content == (MediaBlock("image", "image/png", "aGk="),)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not json",
        b"[]",
        b"[" * 100_000,
        b"{}",
        raw("text"),
        raw([], "yes"),
        raw([{"type": "text", "text": ""}]),
        raw([{"type": "text", "text": "x" * 200_000}]),
        raw([{"type": "text", "text": "x"}] * 17),
        raw([{"type": "tool_use", "id": "x"}]),
        raw([{**IMAGE, "source": {**IMAGE["source"], "media_type": "text/html"}}]),  # type: ignore[dict-item]
        raw([{**IMAGE, "source": {**IMAGE["source"], "data": "not base64!"}}]),  # type: ignore[dict-item]
        raw([{**IMAGE, "source": {"type": "url", "url": "http://internal/"}}]),
    ],
)
def test_anything_else_is_misbehaviour(bad: bytes) -> None:
    with pytest.raises(HandMisbehaved):
        parse_result(bad)


def test_half_a_surrogate_pair_does_not_get_through() -> None:
    result = parse_result(b'{"content": [{"type": "text", "text": "a\\ud800b"}], "is_error": false}')
    assert result.text.encode() == b"a?b"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (b'{"state": "running"}\n', Running()),
        (b'{"state": "unknown"}\n', Unknown()),
        (b'{"state": "acknowledged"}\n', Acknowledged()),
        (b'{"state": "finished"}\n' + raw([]), Finished(ToolResult((), False))),
    ],
)
def test_states_are_read(answer: bytes, state: object) -> None:
    assert parse_state(answer) == state


def test_an_unknown_state_is_misbehaviour() -> None:
    with pytest.raises(HandMisbehaved):
        parse_state(b'{"state": "pondering"}\n')


def test_a_hand_says_who_it_is() -> None:
    assert parse_incarnation(b'{"incarnation": "inc_1"}') == "inc_1"
    with pytest.raises(HandMisbehaved):
        parse_incarnation(b'{"incarnation": 7}')
