"""Byte streams of the door: a socket that counts and holds little, and two of them joined without a look inside."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

HIGH_WATER: Final = 256 * 1024
"""How much is held for one direction of a socket before its sender has to wait."""

WRITE_S: Final = 300.0
"""How long a peer may read nothing at all."""


class Stream(Protocol):
    """Ordered bytes both ways. Reading and writing may go on side by side. Raises OSError when the peer is gone."""

    async def read(self) -> bytes:
        """Some bytes; none at the end of the stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Hand over all of it; return when there is room for more."""
        ...

    async def end(self) -> None:
        """Say that no more will be written."""
        ...


class Idle(Exception):
    """Nothing passed either way for too long."""


class Socket(asyncio.Protocol):
    """One plain connection. After `join`, the bytes go from one transport to the other and come by here no more."""

    def __init__(self, *, made: Callable[["Socket"], None] | None = None) -> None:
        """`made` is called as soon as there is a connection, `gone` when there is none any more."""
        self.gone: Callable[[], object] | None = None
        self._made = made
        self.received = 0
        self.sent = 0
        self.lost = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        self._ended = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._peer: Socket | None = None

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked by isinstance: those of uvloop are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        peer = self._peer
        if peer is not None:
            peer.sent += len(data)
            # A peer that is gone takes nothing more: its end is on its way to us.
            if peer._transport is not None and not peer._transport.is_closing():
                peer._transport.write(data)
            return
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= HIGH_WATER:
            self._live().pause_reading()
        self._wake.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake.set()
        if self._peer is not None:
            self._peer._shut()
            self._close_if_both_ended(self._peer)
        return True  # the other direction may go on

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended = True
        self.lost.set()
        self._wake.set()
        self._room.set()
        if self.gone is not None:
            self.gone()
        if self._peer is not None and self._peer._transport is not None:
            if exc is None:
                self._peer._transport.close()
            else:
                self._peer._transport.abort()

    def pause_writing(self) -> None:
        self._room.clear()
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.pause_reading()

    def resume_writing(self) -> None:
        self._room.set()
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.resume_reading()

    # What the door calls

    @property
    def at_end(self) -> bool:
        """Whether the peer has hung up, or has said something that nobody has read."""
        return self._ended or bool(self._held)

    async def read(self) -> bytes:
        while not self._held:
            if self._ended:
                return b""
            self._wake.clear()
            await self._wake.wait()
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        paused, self._held_size = self._held_size >= HIGH_WATER, 0
        if paused and self._transport is not None:
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        self._live().write(data)
        self.sent += len(data)
        if not self._room.is_set():
            async with asyncio.timeout(WRITE_S):
                await self._room.wait()
            self._live()

    async def end(self) -> None:
        self._shut()

    def close(self) -> None:
        """Send what was written, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _shut(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def _close_if_both_ended(self, peer: "Socket") -> None:
        # A transport that was ended both ways stays open until it is told to close.
        if self._ended and peer._ended:
            self.close()
            peer.close()

    def _live(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionResetError("the connection is gone")
        return self._transport

    def _hand_over_to(self, peer: "Socket") -> None:
        """Everything held, and from now on everything that comes."""
        self._peer = peer
        held, paused = b"".join(self._held), self._held_size >= HIGH_WATER
        self._held.clear()
        self._held_size = 0
        if held and peer._transport is not None:
            peer.sent += len(held)
            peer._transport.write(held)
        if self._ended:
            peer._shut()
            self._close_if_both_ended(peer)
        if paused and peer._room.is_set() and self._transport is not None:
            self._transport.resume_reading()


async def join(left: Socket, right: Socket, *, idle_s: float) -> None:
    """Pass everything both ways until both are closed. Raises Idle. Whoever calls closes them when this raises."""
    for one, other in ((left, right), (right, left)):
        if one.lost.is_set():
            other.close()
    left._hand_over_to(right)
    right._hand_over_to(left)
    seen = -1
    while not (left.lost.is_set() and right.lost.is_set()):
        try:
            async with asyncio.timeout(idle_s):
                await left.lost.wait()
                await right.lost.wait()
        except TimeoutError:
            total = left.received + right.received
            if total == seen:
                raise Idle from None
            seen = total
