"""The demo's timeline."""

import io

from galley_server.demo.timeline import Timeline
from galley_server.gist import JSON


def shown(*events: dict[str, JSON], tty: bool = False) -> str:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return tty

    out = Terminal()
    moments = iter([10.0, *[11.5] * len(events)])
    timeline = Timeline(out, width=80, clock=lambda: next(moments))
    for event in events:
        timeline.event(event)
    return out.getvalue()


RESULT: dict[str, JSON] = {
    "type": "agent.tool_result",
    "content": [{"type": "text", "text": "\n".join(f"row  {n}" for n in range(20))}],
}


def test_a_call_is_one_line_with_its_time_and_input() -> None:
    line = shown({"type": "agent.tool_use", "name": "bash", "input": {"command": "python3 top.py"}})
    assert line == "   1.50 s  agent.tool_use           bash python3 top.py\n"


def test_a_result_shows_the_first_lines_of_its_output_and_says_how_many_follow() -> None:
    lines = shown(RESULT).splitlines()
    assert lines[1] == "             | row  0"
    assert lines[-1] == "             | … 13 more lines"


def test_no_line_is_wider_than_the_terminal() -> None:
    assert max(map(len, shown({"type": "agent.message", "content": "word " * 100}).splitlines())) <= 80


def test_colours_are_for_terminals_only() -> None:
    event: dict[str, JSON] = {"type": "session.error", "error": {"type": "unknown_error", "message": "no"}}
    assert "\x1b" not in shown(event)
    assert shown(event, tty=True).count("\x1b[") == 2
