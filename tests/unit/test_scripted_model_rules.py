"""A rule file decides from the transcript alone, and says what is wrong with it."""

import json
from pathlib import Path

import pytest
from galley_server.demo.reply import ApiError, Drop, Pace, Reply, Stall, StreamError, say
from galley_server.demo.rules import load_rules, read_rules
from galley_server.demo.shape import read_request
from galley_server.demo.transcript import JSON, Request, Text, Thinking, ToolUse
from galley_server.errors import ConfigError

RUN: JSON = {
    "rules": [
        {
            "when": {"asked": "run: (?P<command>.+)", "results": 0},
            "reply": {"text": "Running.", "tools": [{"name": "bash", "input": {"command": "{{command}}"}}]},
        },
        {"when": {"last_error": True}, "reply": {"text": "It failed: {{last_result}}"}},
        {"when": {"min_results": 1}, "reply": {"text": "{{results}}: {{last_result}}"}},
        {"reply": "echo"},
    ]
}


def asked(question: str, *results: tuple[str, bool]) -> Request:
    messages: list[JSON] = [{"role": "user", "content": question}]
    for number, (text, is_error) in enumerate(results):
        use: JSON = {"type": "tool_use", "id": f"t{number}", "name": "bash", "input": {}}
        result: JSON = {"type": "tool_result", "tool_use_id": f"t{number}", "content": text, "is_error": is_error}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return read_request({"model": "m", "max_tokens": 1, "messages": messages}, betas=False)


def test_a_marker_in_the_question_fills_the_tool_call() -> None:
    answer = read_rules(RUN)(asked("Please run: ls -l"))
    assert answer == Reply((Text("Running."), ToolUse("bash", {"command": "ls -l"})))


def test_results_so_far_choose_the_rule() -> None:
    rules = read_rules(RUN)
    assert rules(asked("run: ls", ("a.txt", False))) == say("1: a.txt")
    assert rules(asked("run: ls", ("no such file", True))) == say("It failed: no such file")


def test_echo_says_the_question() -> None:
    assert read_rules(RUN)(asked("Hello")) == say("Hello")


def test_the_same_transcript_always_gets_the_same_answer() -> None:
    rules = read_rules(RUN)
    assert rules(asked("run: ls")) == rules(asked("run: ls")) == read_rules(RUN)(asked("run: ls"))


def test_a_question_after_results_starts_a_new_turn() -> None:
    first = asked("run: ls", ("a.txt", False)).body["messages"]
    assert isinstance(first, list)
    messages: list[JSON] = [*first, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Thanks"}]
    request = read_request({"model": "m", "max_tokens": 1, "messages": messages}, betas=False)
    assert (request.asked, request.questions, request.steps) == ("Thanks", 2, ())


def test_content_keeps_its_order_and_a_rule_may_have_a_pace_of_its_own() -> None:
    rules = read_rules(
        {
            "pace": {"first_token_ms": 10, "chunk_chars": 3},
            "rules": [
                {
                    "reply": {
                        "content": [{"name": "now"}, {"text": "b"}, {"thinking": "c"}],
                        "stop_reason": "max_tokens",
                        "pace": {"per_token_ms": 5},
                    }
                }
            ],
        }
    )
    content = (ToolUse("now", {}), Text("b"), Thinking("c"))
    assert rules(asked("x")) == Reply(content, "max_tokens", pace=Pace(0.01, 0.005, 3))


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ({"error": {"status": 429, "retry_after": 2}}, ApiError(429, retry_after=2)),
        ({"text": "x", "fault": {"kind": "drop", "at": "text"}}, Reply((Text("x"),), fault=Drop("text"))),
        ({"text": "x", "fault": {"kind": "stall", "seconds": 2}}, Reply((Text("x"),), fault=Stall(3, 2.0))),
        ({"text": "x", "fault": {"kind": "error", "at": 1}}, Reply((Text("x"),), fault=StreamError(1))),
    ],
)
def test_a_rule_can_be_a_fault(reply: JSON, answer: Reply | ApiError) -> None:
    assert read_rules({"rules": [{"reply": reply}]})(asked("x")) == answer


def test_no_matching_rule_is_an_error_that_a_client_does_not_repeat() -> None:
    answer = read_rules({"rules": []})(asked("Hello"))
    assert isinstance(answer, ApiError)
    assert answer.status == 400
    assert "Hello" in answer.text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"reply": "shout"}, "rules.0.reply: expected an object, got 'shout'"),
        ({"reply": {"txt": "x"}}, "rules.0.reply.txt: unknown"),
        ({"when": {"asked": "("}, "reply": "echo"}, "rules.0.when.asked: "),
        ({"when": {"results": "2"}, "reply": "echo"}, "rules.0.when.results: expected a number"),
        ({"reply": {"tools": [{"input": {}}]}}, "rules.0.reply.tools.0: expected text, thinking, or the name"),
        ({"reply": {"error": {"status": 200}}}, "rules.0.reply.error.status: expected an HTTP status"),
        ({"reply": {"fault": {"kind": "fire"}}}, "rules.0.reply.fault.kind: expected drop, stall or error"),
        ({"reply": {"stop_reason": "bored"}}, "rules.0.reply.stop_reason: 'bored' is none of end_turn"),
    ],
)
def test_a_wrong_rule_is_named_by_its_place(rule: JSON, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rules({"rules": [rule]})
    assert words in caught.value.message


def test_a_rule_file_is_read_and_its_name_is_in_the_complaint(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(RUN))
    assert load_rules(path)(asked("Hello")) == say("Hello")
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"script\.json"):
        load_rules(path)
