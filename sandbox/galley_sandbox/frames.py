"""The frames between the server and a hand: bytes in, frames out, and no I/O. Both ends run this file.

A frame is one byte of kind, four of channel, four of length, then the payload.
"""

# This file also runs inside the sandbox: standard library only, Python 3.8 syntax.
from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("!BII")
MAX_PAYLOAD = 64 * 1024


class Kind(IntEnum):
    HELLO = 0
    OPEN = 1
    DATA = 2
    END = 3
    RESET = 4
    WINDOW = 5
    PING = 6
    PONG = 7


_KINDS = {int(kind): kind for kind in Kind}


class FramingError(Exception):
    """The peer sent what the protocol does not allow; the stream is of no more use."""


class Frame(NamedTuple):
    kind: Kind
    channel: int
    payload: bytes


def encode(frame: Frame) -> bytes:
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame carries at most {MAX_PAYLOAD} bytes, not {len(frame.payload)}")
    return HEADER.pack(frame.kind, frame.channel, len(frame.payload)) + frame.payload


class FrameReader:
    """Cuts a byte stream into frames. Holds less than one frame beyond what was last fed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        # Dropping the used prefix here, and not per frame, keeps a burst of small frames linear.
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None until more bytes arrive."""
        available = len(self._buffer) - self._start
        if available < HEADER.size:
            return None
        number, channel, length = HEADER.unpack_from(self._buffer, self._start)
        kind = _KINDS.get(number)
        if kind is None:
            raise FramingError(f"channel {channel} sent a frame of unknown kind {number}")
        if length > MAX_PAYLOAD:
            raise FramingError(f"channel {channel} announced {length} bytes, the limit is {MAX_PAYLOAD}")
        if available < HEADER.size + length:
            return None
        begin = self._start + HEADER.size
        self._start = begin + length
        return Frame(kind, channel, bytes(self._buffer[begin : self._start]))
