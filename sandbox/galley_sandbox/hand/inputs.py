"""The official input schemas of the tools, as far as a call must satisfy them before anything runs. No I/O here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class _Field(NamedTuple):
    name: str
    what: str
    accepts: Callable[[object], bool]
    required: bool


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_range(value: object) -> bool:
    return isinstance(value, list) and all(_is_whole(item) for item in value)


def _text(name: str, *, required: bool = True) -> _Field:
    return _Field(name, "a string", _is_text, required)


SCHEMAS: dict[str, tuple[_Field, ...]] = {
    "bash": (
        _text("command", required=False),
        _Field("restart", "true or false", _is_flag, False),
        _Field("timeout_ms", "a whole number of milliseconds", _is_whole, False),
    ),
    "read": (_text("file_path"), _Field("view_range", "a list [start_line, end_line]", _is_range, False)),
    "write": (_text("file_path"), _text("content")),
    "edit": (
        _text("file_path"),
        _text("old_string"),
        _text("new_string"),
        _Field("replace_all", "true or false", _is_flag, False),
    ),
    "glob": (_text("pattern"), _text("path", required=False)),
    "grep": (_text("pattern"), _text("path", required=False)),
}


def complaint(tool: str, given: dict[str, Any]) -> str | None:
    """What is wrong with the input of a known tool, in words for the model."""
    for field in SCHEMAS[tool]:
        value = given.get(field.name)
        if value is None:
            if field.required:
                return f"{tool}: {field.name} is required"
        elif not field.accepts(value):
            return f"{tool}: {field.name} must be {field.what}"
    return None
