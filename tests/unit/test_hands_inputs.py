"""A bad input is told to the model by field, before anything is sent."""

from collections.abc import Mapping

import pytest
from galley_server.hands.inputs import complaint
from galley_server.wire.base import JSON


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        ("bash", {"command": "true"}),
        ("bash", {"command": "true", "timeout_ms": 0, "restart": False}),
        ("bash", {"restart": True}),
        ("read", {"file_path": "/etc/hosts"}),
        ("read", {"file_path": "a", "view_range": [3, 3]}),
        ("read", {"file_path": "a", "view_range": [3, -1]}),
        ("write", {"file_path": "a", "content": ""}),
        ("edit", {"file_path": "a", "old_string": "x", "new_string": "", "replace_all": True}),
        ("glob", {"pattern": "**/*.py", "path": "src"}),
        ("grep", {"pattern": "^def "}),
    ],
)
def test_a_good_input_passes(tool: str, given: Mapping[str, JSON]) -> None:
    assert complaint(tool, given) is None


@pytest.mark.parametrize(
    ("tool", "given", "expected"),
    [
        ("bash", {}, "bash: command is required"),
        ("bash", {"command": "  "}, "bash: command is required"),
        ("bash", {"command": "ls", "restart": True}, "bash: give either command or restart, not both"),
        ("bash", {"command": "ls", "timeout_ms": -1}, "timeout_ms"),
        ("bash", {"command": "ls", "timeout_ms": "5"}, "timeout_ms"),
        ("bash", {"command": ["ls"]}, "command"),
        ("bash", {"command": "ls", "cwd": "/"}, "bash: 'cwd' is not an input of this tool"),
        ("bash", {"command": "ls\0"}, "NUL"),
        ("bash", {"command": "ls \ud800"}, "command: not valid Unicode text"),
        ("read", {}, "read: file_path is required"),
        ("read", {"file_path": ""}, "file_path must not be empty"),
        ("read", {"file_path": "a\0b"}, "file_path: must not contain a NUL character"),
        ("read", {"file_path": "a", "view_range": [1]}, "view_range"),
        ("read", {"file_path": "a", "view_range": [0, 4]}, "view_range: the first line is 1"),
        ("read", {"file_path": "a", "view_range": [5, 4]}, "view_range: the last line is before the first"),
        ("write", {"file_path": "a"}, "write: content is required"),
        ("write", {"content": 1}, "write: file_path is required; content: "),
        ("edit", {"file_path": "a", "old_string": "", "new_string": "x"}, "old_string must not be empty"),
        ("glob", {"path": "."}, "glob: pattern is required"),
        ("grep", {"pattern": ""}, "grep: pattern must not be empty"),
    ],
)
def test_a_bad_input_is_refused_naming_the_field(tool: str, given: Mapping[str, JSON], expected: str) -> None:
    said = complaint(tool, given)
    assert said is not None
    assert expected in said
