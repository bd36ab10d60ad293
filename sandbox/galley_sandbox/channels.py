"""Channels over one stream: who may open, send and how much, decided without any I/O. Both ends run this file.

Each direction of a channel has a window: a sender never has more than WINDOW bytes
on their way that the receiver has not consumed. So a reader that stops reading stops
its own channel and no other, and nothing a peer does makes us hold more than
WINDOW bytes per channel, MAX_CHANNELS channels and MAX_CONTROL control frames.
"""

# This file also runs inside the sandbox: standard library only, Python 3.8 syntax.
from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from galley_sandbox.frames import Frame, FrameReader, FramingError, Kind, encode

GREETING = b"galley-hand/1"
WINDOW = 256 * 1024
CHUNK = 16 * 1024  # small enough that a tool call's answer never waits long behind a file body
MAX_CHANNELS = 256
MAX_TUNNELS = 64  # channels that the hand opens, one for each connection out of the sandbox
MAX_META = 16 * 1024
MAX_REASON = 1024
MAX_CONTROL = 2048

_CREDIT = struct.Struct("!I")


class Opened(NamedTuple):
    channel: int
    meta: bytes


class Received(NamedTuple):
    channel: int
    data: bytes


class Ended(NamedTuple):
    """The peer will send no more here; we still may."""

    channel: int


class WasReset(NamedTuple):
    channel: int
    reason: str


class Drained(NamedTuple):
    """All that was written here is on its way: there is room for more."""

    channel: int


class Ponged(NamedTuple):
    payload: bytes


if TYPE_CHECKING:
    Event = Opened | Received | Ended | WasReset | Drained | Ponged


class _Channel:
    __slots__ = ("credit", "end_sent", "ended", "owed", "peer_ended", "pending", "room", "unread", "wants_room")

    def __init__(self) -> None:
        self.room = WINDOW  # what the peer still lets us send
        self.credit = WINDOW  # what we still let the peer send
        self.owed = 0  # consumed here and not yet told to the peer
        self.unread = 0  # received and not yet consumed
        self.pending = bytearray()
        self.ended = False
        self.end_sent = False
        self.peer_ended = False
        self.wants_room = False


class Link:
    """The state of one stream. Feed it with `receive`, empty it with `next_event` and `take`.

    One end is the `first`, and opens odd channels; the other opens even ones.
    """

    def __init__(self, *, first: bool, max_peer_channels: int = MAX_CHANNELS) -> None:
        self._reader = FrameReader()
        self._channels: dict[int, _Channel] = {}
        self._events: deque[Event] = deque()
        self._control: deque[Frame] = deque([Frame(Kind.HELLO, 0, GREETING)])
        self._ready: deque[int] = deque()
        self._ready_set: set[int] = set()
        self._next_own = 1 if first else 2
        self._peer_parity = 0 if first else 1
        self._last_peer = 0
        self._own_open = 0
        self._peer_open = 0
        self._max_peer = max_peer_channels
        self._greeted = False
        self._overrun = False

    # What the peer sends

    def receive(self, data: bytes) -> None:
        """Take bytes from the stream. Raises FramingError; the stream must then be closed."""
        self._reader.feed(data)
        while not self._overrun:
            frame = self._reader.next_frame()
            if frame is None:
                return
            self._on_frame(frame)
        raise FramingError(f"the peer does not read: {MAX_CONTROL} control frames wait for it")

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def _on_frame(self, frame: Frame) -> None:
        if not self._greeted:
            if frame.kind is not Kind.HELLO or frame.payload != GREETING:
                raise FramingError(f"expected the greeting {GREETING.decode()!r} first")
            self._greeted = True
            return
        if frame.kind is Kind.PING:
            self._send_control(Frame(Kind.PONG, 0, frame.payload[:16]))
        elif frame.kind is Kind.PONG:
            self._events.append(Ponged(frame.payload[:16]))
        elif frame.kind is Kind.OPEN:
            self._on_open(frame)
        elif frame.kind is Kind.HELLO:
            raise FramingError("greeted twice")
        else:
            self._on_channel_frame(frame)

    def _on_open(self, frame: Frame) -> None:
        if frame.channel % 2 != self._peer_parity or frame.channel <= self._last_peer:
            raise FramingError(f"channel {frame.channel} is not the peer's to open")
        if len(frame.payload) > MAX_META:
            raise FramingError(f"channel {frame.channel} opened with {len(frame.payload)} bytes, limit {MAX_META}")
        if self._peer_open >= self._max_peer:
            raise FramingError(f"channel {frame.channel} is one more than the {self._max_peer} allowed at once")
        self._last_peer = frame.channel
        self._peer_open += 1
        self._channels[frame.channel] = _Channel()
        self._events.append(Opened(frame.channel, frame.payload))

    def _on_channel_frame(self, frame: Frame) -> None:
        number = frame.channel
        channel = self._channels.get(number)
        if channel is None:
            last_known = self._last_peer if number % 2 == self._peer_parity else self._next_own - 2
            if 0 < number <= last_known:
                return  # closed here while this frame was on its way
            raise FramingError(f"channel {number} was never opened")
        if frame.kind is Kind.DATA:
            if channel.peer_ended:
                raise FramingError(f"channel {number} sent data after its end")
            if len(frame.payload) > channel.credit:
                raise FramingError(f"channel {number} sent {len(frame.payload)} bytes with {channel.credit} allowed")
            if not frame.payload:
                return
            channel.credit -= len(frame.payload)
            channel.unread += len(frame.payload)
            self._events.append(Received(number, frame.payload))
        elif frame.kind is Kind.END:
            if channel.peer_ended:
                raise FramingError(f"channel {number} ended twice")
            channel.peer_ended = True
            self._events.append(Ended(number))
            self._forget_if_done(number, channel)
        elif frame.kind is Kind.RESET:
            self._forget(number)
            self._events.append(WasReset(number, frame.payload[:MAX_REASON].decode("utf-8", "replace")))
        else:
            self._on_window(number, channel, frame.payload)

    def _on_window(self, number: int, channel: _Channel, payload: bytes) -> None:
        if len(payload) != _CREDIT.size:
            raise FramingError(f"channel {number} sent a window of {len(payload)} bytes")
        channel.room += _CREDIT.unpack(payload)[0]
        if channel.room > WINDOW:
            raise FramingError(f"channel {number} gave more window than was used")
        self._make_ready(number, channel)

    # What we send

    def open(self, meta: bytes) -> int:
        if len(meta) > MAX_META:
            raise ValueError(f"a channel opens with at most {MAX_META} bytes, not {len(meta)}")
        if self._own_open >= MAX_CHANNELS:
            raise BlockingIOError(f"{MAX_CHANNELS} channels are open already")
        number = self._next_own
        self._next_own += 2
        self._own_open += 1
        self._channels[number] = _Channel()
        self._send_control(Frame(Kind.OPEN, number, meta))
        return number

    def is_open(self, number: int) -> bool:
        """Whether we may still send here."""
        channel = self._channels.get(number)
        return channel is not None and not channel.ended

    def knows(self, number: int) -> bool:
        """Whether either side of the channel may still see something."""
        return number in self._channels

    def space(self, number: int) -> int:
        """How much `write` takes now. When it is 0, a Drained event tells of room."""
        channel = self._channels.get(number)
        if channel is None or channel.ended:
            return 0
        free = WINDOW - len(channel.pending)
        if free <= 0:
            channel.wants_room = True
        return free

    def write(self, number: int, data: bytes) -> None:
        channel = self._channels[number]
        if channel.ended or len(channel.pending) + len(data) > WINDOW:
            raise ValueError(f"channel {number} cannot take {len(data)} bytes now")
        channel.pending += data
        self._make_ready(number, channel)

    def end(self, number: int) -> None:
        """Say that no more follows what was written."""
        channel = self._channels[number]
        if not channel.ended:
            channel.ended = True
            self._make_ready(number, channel)

    def reset(self, number: int, reason: str) -> None:
        """Break the channel off, both ways. Nothing happens if it is closed already."""
        if number in self._channels:
            self._forget(number)
            self._send_control(Frame(Kind.RESET, number, reason.encode()[:MAX_REASON]))

    def consumed(self, number: int, size: int) -> None:
        """Let the peer send `size` bytes more; only what was received may be given back."""
        channel = self._channels.get(number)
        if channel is None:
            return
        if size > channel.unread:
            raise ValueError(f"channel {number} cannot give back {size} bytes of {channel.unread}")
        channel.unread -= size
        channel.owed += size
        if channel.owed >= WINDOW // 2 and not channel.peer_ended:
            self._send_control(Frame(Kind.WINDOW, number, _CREDIT.pack(channel.owed)))
            channel.credit += channel.owed
            channel.owed = 0

    def ping(self, payload: bytes) -> None:
        self._send_control(Frame(Kind.PING, 0, payload[:16]))

    def has_output(self) -> bool:
        return bool(self._control or self._ready)

    def take(self, at_least: int = WINDOW) -> bytes:
        """The next bytes for the stream: control frames first, then channels in turn, about `at_least` of them."""
        parts = []
        size = 0
        while self._control and size < at_least:
            part = encode(self._control.popleft())
            parts.append(part)
            size += len(part)
        while self._ready and size < at_least:
            number = self._ready.popleft()
            self._ready_set.discard(number)
            part = self._take_from(number)
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _take_from(self, number: int) -> bytes:
        channel = self._channels.get(number)
        if channel is None:
            return b""
        size = min(len(channel.pending), channel.room, CHUNK)
        out = b""
        if size:
            out = encode(Frame(Kind.DATA, number, bytes(channel.pending[:size])))
            del channel.pending[:size]
            channel.room -= size
        if channel.pending:
            self._make_ready(number, channel)
        elif channel.ended:
            out += encode(Frame(Kind.END, number, b""))
            channel.end_sent = True
            self._forget_if_done(number, channel)
        elif channel.wants_room:
            channel.wants_room = False
            self._events.append(Drained(number))
        return out

    def _make_ready(self, number: int, channel: _Channel) -> None:
        sendable = (channel.pending and channel.room > 0) or (channel.ended and not channel.pending)
        if sendable and not channel.end_sent and number not in self._ready_set:
            self._ready.append(number)
            self._ready_set.add(number)

    def _send_control(self, frame: Frame) -> None:
        # Told at the next `receive`, so that nobody else has to expect it: whoever does not read gets no more.
        if len(self._control) >= MAX_CONTROL:
            self._overrun = True
        else:
            self._control.append(frame)

    def _forget_if_done(self, number: int, channel: _Channel) -> None:
        if channel.peer_ended and channel.end_sent:
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._channels[number]
        if number % 2 == self._peer_parity:
            self._peer_open -= 1
        else:
            self._own_open -= 1
