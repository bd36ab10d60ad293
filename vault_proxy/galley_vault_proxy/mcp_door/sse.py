"""Server-sent events as bytes: split into events and taken apart without changing what is not to be changed. No I/O."""

import re
from dataclasses import dataclass
from typing import Final

# Possessive, so that the two halves of a CRLF are never taken for two line ends.
_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE: Final = re.compile(rb"[^\r\n]*(?>\r\n|\n|\r|\Z)")
_BOM: Final = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """A peer sends an event that is larger than what is held for one."""


class EventSplitter:
    """Cuts a stream into whole events, each with the blank line that ends it, and holds no more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises EventTooLarge."""
        self._buffer += chunk
        events: list[bytes] = []
        start = 0
        while match := _END.search(self._buffer, max(start, self._searched)):
            end = match.end()
            if end == len(self._buffer) and self._buffer[end - 1] == 0x0D:
                break  # a line feed may follow that belongs to it
            events.append(bytes(self._buffer[start:end]))
            start = end
        del self._buffer[:start]
        # An end may have begun in the last three bytes.
        self._searched = max(0, len(self._buffer) - 3)
        if len(self._buffer) > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit >> 20} MiB")
        return events

    def rest(self) -> bytes:
        """What is left at the end of the stream: an event that was not ended, which clients discard."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest


@dataclass(frozen=True, slots=True)
class Event:
    """What the lines of one event say. `data` None: it has no data line and is not dispatched by a client."""

    data: bytes | None
    type: bytes = b"message"
    id: bytes | None = None


def read_event(raw: bytes) -> Event:
    data: list[bytes] = []
    kind, id_ = b"message", None
    for name, value in _fields(raw):
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value or b"message"
        elif name == b"id" and b"\0" not in value:
            id_ = value
    return Event(b"\n".join(data) if data else None, kind, id_)


def with_data(raw: bytes, data: bytes) -> bytes:
    """The same event with other data, which must be one line; every other line stays as it is, byte for byte."""
    parts: list[bytes] = []
    done = False
    for line in _LINE.findall(raw):
        if _field(line)[0] != b"data":
            parts.append(line)
        elif not done:
            parts.append(b"data: " + data + line[len(line.rstrip(b"\r\n")) :])
            done = True
    return b"".join(parts)


def event(data: bytes, *, id_: bytes | None = None) -> bytes:
    """A new event whose data is one line."""
    head = b"id: " + id_ + b"\n" if id_ is not None else b""
    return head + b"event: message\ndata: " + data + b"\n\n"


def _fields(raw: bytes) -> list[tuple[bytes, bytes]]:
    return [_field(line) for line in _LINE.findall(raw.removeprefix(_BOM)) if line.rstrip(b"\r\n")]


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.rstrip(b"\r\n").partition(b":")
    return name, value.removeprefix(b" ")
