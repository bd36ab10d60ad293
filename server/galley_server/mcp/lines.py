"""Newline-delimited JSON-RPC as bytes: bounded lines, ids, error lines. No I/O; standard library only."""

import json
import re
from dataclasses import dataclass
from typing import TypeAlias

# What a client may send in one message, the same on stdio and over HTTP; and what a server may answer.
MAX_CLIENT_LINE = 4 * 1024 * 1024
MAX_SERVER_LINE = 16 * 1024 * 1024

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INTERNAL_ERROR = -32603

RequestId: TypeAlias = int | str

_KEPT = 4096  # bytes of an over-long line kept from either end, to find its id in
_ID = rb'"id"\s*:\s*(-?\d{1,20}|"(?:[^"\\\x00-\x1f]|\\.){0,512}")\s*'
_PLAIN = rb'"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*'
# An id is at the top level if only plain members stand between it and the line's first brace, or its last one: each
# SDK writes it in one of these places. Anchored on both sides, neither can match inside a string or a nested object.
_ID_IN_FRONT = re.compile(rb"\s*\{\s*(?:" + _PLAIN + rb",\s*)*" + _ID + rb"[,}]")
_ID_AT_END = re.compile(_ID + rb"(?:,\s*" + _PLAIN + rb")*\}\s*$")
# How the server end writes an answer; the shim reads its id without parsing what may be megabytes of result.
_ANSWER = re.compile(rb'\{"jsonrpc":"2\.0","id":(-?\d{1,20}|"[^"\\]{0,512}"),"(?:result|error)":')


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line over the limit. Its content is gone; `id` is what the sender called it, if that could be seen."""

    id: RequestId | None


class LineReader:
    """Cuts a byte stream into lines and never holds more than `limit` bytes of one. Blank lines say nothing."""

    def __init__(self, limit: int, *, keep_blank: bool = False) -> None:
        self._limit = limit
        self._keep_blank = keep_blank
        self._partial = bytearray()
        self._head: bytes | None = None  # set while the rest of an over-long line is being thrown away

    def feed(self, data: bytes) -> list[bytes | TooLong]:
        """The lines that `data` completes, without their line ends."""
        *ends, rest = data.split(b"\n")
        lines: list[bytes | TooLong] = []
        for end in ends:
            line = self._finish(end)
            if self._keep_blank or isinstance(line, TooLong) or line.strip():
                lines.append(line)
        self._keep(rest)
        return lines

    def _finish(self, end: bytes) -> bytes | TooLong:
        if not self._partial and self._head is None and len(end) <= self._limit:
            return end
        self._keep(end)
        line, head = bytes(self._partial), self._head
        self._partial.clear()
        self._head = None
        return line if head is None else TooLong(find_id(head, line))

    def _keep(self, piece: bytes) -> None:
        self._partial += piece
        if self._head is None and len(self._partial) > self._limit:
            self._head = bytes(self._partial[:_KEPT])
        if self._head is not None:
            del self._partial[:-_KEPT]


def find_id(head: bytes, tail: bytes) -> RequestId | None:
    """The id of a message of which only both ends are known; None rather than a guess."""
    found = _ID_IN_FRONT.match(head) or _ID_AT_END.search(tail)
    return None if found is None else _decoded(found[1])


def answered_id(line: bytes) -> RequestId | None:
    """The id that a server's line answers; None for a notification or a request of the server's own."""
    quick = _ANSWER.match(line)
    if quick is not None:
        return _decoded(quick[1])
    message = parsed(line)
    return None if message is None or "method" in message else id_of(message)


def parsed(line: bytes) -> dict[str, object] | None:
    """The message as an object, or None for what is not one: the server end says what is wrong with it."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def id_of(message: dict[str, object]) -> RequestId | None:
    value = message.get("id")
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def error_line(id_: RequestId | None, code: int, message: str) -> bytes:
    return encoded({"jsonrpc": "2.0", "id": id_, "error": {"code": code, "message": message}})


def encoded(message: dict[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def too_long_message(limit: int, sender: str) -> str:
    return f"The {sender} sent a message longer than {limit} bytes, the most that one MCP message may have here."


def _decoded(raw: bytes) -> RequestId | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, int | str) else None
