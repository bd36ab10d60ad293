"""One line about an event, for people: what `galley log show` and the demo's timeline print. No I/O here."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"


def gist(event: Mapping[str, JSON], *, width: int = 100) -> str:
    """Say in at most `width` characters what an event holds beyond its type."""
    return _fit(_words(event), width)


def one_line(text: str) -> str:
    """Text on one line, safe for a terminal."""
    return printable(" ".join(text.split()))


def printable(line: str) -> str:
    """A line safe for a terminal: what a model or a sandbox wrote may hold escape sequences."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line.expandtabs())


def _words(event: Mapping[str, JSON]) -> str:
    if isinstance(event.get("name"), str):
        server = event.get("mcp_server_name")
        tool = event["name"] if server is None else f"{server}/{event['name']}"
        return f"{tool} {_input(event.get('input'))}"
    if "content" in event:
        return ("error: " if event.get("is_error") else "") + _text(event["content"])
    if isinstance(stop := event.get("stop_reason"), Mapping):
        return str(stop.get("type", ""))
    if isinstance(error := event.get("error"), Mapping):
        return f"{error.get('type', '')}: {error.get('message', '')}"
    if "result" in event:
        return f"{event['result']} {event.get('tool_use_id', '')}"
    if isinstance(usage := event.get("model_usage"), Mapping):
        return f"{usage.get('input_tokens', 0)} tokens in, {usage.get('output_tokens', 0)} out"
    return ""


def _input(value: JSON) -> str:
    """A tool's input: its one long text alone, else `name=value` each."""
    if not isinstance(value, Mapping):
        return ""
    if len(value) == 1 and isinstance(only := next(iter(value.values())), str):
        return only
    return " ".join(f"{name}={item if isinstance(item, str) else json.dumps(item)}" for name, item in value.items())


def _text(content: JSON) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    pieces = []
    for block in content:
        if isinstance(block, Mapping):
            pieces.append(str(block["text"]) if "text" in block else f"[{block.get('type', 'block')}]")
    return " ".join(pieces)


def _fit(text: str, width: int) -> str:
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"
