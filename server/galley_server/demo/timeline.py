"""What the demo prints while a session runs: when, what, and a line of its content. Colours only on a terminal."""

import time
from collections.abc import Callable, Mapping
from typing import Final, TextIO

from galley_server.gist import JSON, gist, printable

_PREVIEW_LINES: Final = 8
_COLOURS: Final[Mapping[str, str]] = {
    "user": "\x1b[36m",
    "agent": "\x1b[32m",
    "tool": "\x1b[33m",
    "session": "\x1b[2m",
    "span": "\x1b[2m",
    "error": "\x1b[31m",
}
_PLAIN: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"


class Timeline:
    def __init__(self, out: TextIO, *, width: int = 120, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._width = width
        self._clock = clock
        self._colours = out.isatty()
        self._began = clock()

    def start(self) -> None:
        """Count the time from here."""
        self._began = self._clock()

    def say(self, text: str = "") -> None:
        """A line of our own."""
        self._write(text)

    def heading(self, text: str) -> None:
        self._write(f"{_BOLD}{text}{_PLAIN}" if self._colours else text)

    def event(self, event: Mapping[str, JSON]) -> None:
        """One event: a line, and under the result of a tool a few lines of what it printed."""
        kind = str(event.get("type", ""))
        head = f"{self._clock() - self._began:7.2f} s  "
        label = f"{kind:<24} "
        preview = _printed(event) if kind == "agent.tool_result" else []
        content = "" if preview else gist(event, width=max(20, self._width - len(head) - len(label)))
        self._write(f"{head}{self._painted(kind, event, label)}{content}".rstrip())
        for line in preview:
            self._write(" " * len(head) + "  | " + line[: self._width - len(head) - 4])

    def _painted(self, kind: str, event: Mapping[str, JSON], label: str) -> str:
        if not self._colours:
            return label
        family = "tool" if ".tool_" in kind else kind.partition(".")[0]
        if event.get("is_error") or kind == "session.error":
            family = "error"
        return f"{_COLOURS.get(family, '')}{label}{_PLAIN}"

    def _write(self, line: str) -> None:
        # Flushed line by line: it is watched as it happens, also through a pipe.
        self._out.write(line + "\n")
        self._out.flush()


def _printed(event: Mapping[str, JSON]) -> list[str]:
    """The first lines of a tool's output, and how many more there are."""
    lines = [printable(line) for line in text_of(event).rstrip().splitlines()]
    if len(lines) <= _PREVIEW_LINES:
        return lines
    return [*lines[: _PREVIEW_LINES - 1], f"… {len(lines) - _PREVIEW_LINES + 1} more lines"]


def text_of(event: Mapping[str, JSON]) -> str:
    """The text of an event's content."""
    content = event.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return ""
    return "\n".join(str(block["text"]) for block in content if isinstance(block, Mapping) and "text" in block)
