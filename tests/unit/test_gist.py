"""One line about an event."""

import pytest
from galley_server.gist import JSON, gist, one_line


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"type": "agent.message", "content": [{"type": "text", "text": "Two\nlines"}]}, "Two lines"),
        ({"type": "agent.tool_use", "name": "bash", "input": {"command": "ls -l"}}, "bash ls -l"),
        (
            {"type": "agent.tool_use", "name": "read", "input": {"file_path": "/a", "limit": 3}},
            "read file_path=/a limit=3",
        ),
        ({"type": "agent.tool_result", "content": [{"type": "text", "text": "no"}], "is_error": True}, "error: no"),
        ({"type": "agent.tool_result", "content": [{"type": "image", "source": {}}], "is_error": False}, "[image]"),
        ({"type": "session.status_idle", "stop_reason": {"type": "end_turn"}}, "end_turn"),
        ({"type": "session.error", "error": {"type": "unknown_error", "message": "m"}}, "unknown_error: m"),
        ({"type": "user.tool_confirmation", "result": "allow", "tool_use_id": "sevt_1"}, "allow sevt_1"),
        (
            {"type": "span.model_request_end", "model_usage": {"input_tokens": 7, "output_tokens": 2}},
            "7 tokens in, 2 out",
        ),
        ({"type": "session.status_running"}, ""),
    ],
)
def test_an_event_is_one_line(event: dict[str, JSON], line: str) -> None:
    assert gist(event) == line


def test_a_long_event_is_cut_to_the_width() -> None:
    assert gist({"content": "x" * 500}, width=20) == "x" * 19 + "…"


def test_what_a_sandbox_wrote_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in one_line("\x1b[2Jgone\x07")
