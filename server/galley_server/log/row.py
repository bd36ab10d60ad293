"""What the log is made of: drafts, rows, heads, marks and tombstones. Data only, no I/O here."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from galley_server.errors import InvalidRequest

_CURSOR: Final = re.compile(r"^row_(0|[1-9][0-9]{0,9})$")
_MARK: Final = re.compile(r"^([0-9]{1,10}):([0-9a-f]{64})$")

MAX_SEQ: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Draft:
    """A row that is to be appended. `body` is canonical JSON and is stored byte for byte."""

    id: str
    type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is stored. `seq` starts at 1 and has no gap within a session; `at` never goes backwards."""

    seq: int
    id: str
    type: str
    body: bytes
    at: datetime

    @property
    def cursor(self) -> str:
        """The name of this row's position, good on every face."""
        return cursor(self.seq)


@dataclass(frozen=True, slots=True)
class Preview:
    """A fragment of an event that is still being made. Published to whoever listens now, never stored.

    `first` is true for the `event_start`, false for each `event_delta`; `event_type` is the type of the event to come.
    """

    event_id: str
    event_type: str
    first: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class HeadMark:
    """A position and its hash, in a form a person can note down and later hold against the log."""

    seq: int
    hash: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        match = _MARK.match(text)
        if match is None:
            raise InvalidRequest(f"{text!r} is not a head: expected SEQ:HASH, as `galley log verify` prints it")
        return cls(int(match[1]), bytes.fromhex(match[2]))

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


@dataclass(frozen=True, slots=True)
class Head:
    """Where a session's log ends: its last position, that row's hash, and the epoch of its newest lease (0: none)."""

    seq: int
    hash: bytes
    epoch: int

    @property
    def mark(self) -> HeadMark:
        return HeadMark(self.seq, self.hash)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a deleted session: how long its log was, its last hash, when it was deleted and by whom."""

    session_id: str
    seq: int
    hash: bytes
    at: datetime
    caller: str


def cursor(seq: int) -> str:
    return f"row_{seq}"


def parse_cursor(text: str) -> int | None:
    """Return the position that `row_<seq>` names, or None when the text is no row cursor."""
    match = _CURSOR.match(text)
    return None if match is None else int(match[1])
