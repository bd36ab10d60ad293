"""The sandbox's way out: ports on its loopback, each connection to which becomes a channel of the stream."""

from __future__ import annotations

import json
import selectors
import socket
from collections import deque
from typing import TYPE_CHECKING

from galley_sandbox.channels import MAX_TUNNELS
from galley_sandbox.hand.ledger import Refused

if TYPE_CHECKING:
    from typing import Any

    from galley_sandbox.hand.connection import Connection
    from galley_sandbox.hand.loop import Loop

MAX_DOORS = 8
_BACKLOG = 128
_READ = 64 * 1024


class Tunnels:
    """Listens for good: over a dropped stream, who comes waits in the backlog until there is a stream again."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._doors: dict[str, socket.socket] = {}
        self._carrier: Connection | None = None
        self._open: set[Tunnel] = set()

    def listen(self, doors: dict[str, Any], carrier: Connection) -> dict[str, int]:
        """Have connections to these ports carried by `carrier` from now on; return the ports that were to be had."""
        for name, port in doors.items():
            if not isinstance(port, int) or not 0 <= port < 65536:
                raise Refused("a port is a number from 0 to 65535")
            if name not in self._doors:
                if len(self._doors) >= MAX_DOORS:
                    raise Refused(f"there are {MAX_DOORS} doors already")
                self._doors[name] = _listener(port)
        self._carrier = carrier
        self._watch()
        return {name: self._doors[name].getsockname()[1] for name in doors}

    def dropped(self, connection: Connection) -> None:
        """Nothing passes over this stream any more."""
        if self._carrier is connection:
            self._carrier = None
        for tunnel in [tunnel for tunnel in self._open if tunnel.connection is connection]:
            tunnel.broken()
        self._watch()

    def closed(self, tunnel: Tunnel) -> None:
        self._open.discard(tunnel)
        self._watch()

    def _watch(self) -> None:
        # Whoever is one too many waits in the backlog too.
        may_come = self._carrier is not None and len(self._open) < MAX_TUNNELS
        for name, listener in self._doors.items():
            self._loop.watch(listener.fileno(), lambda _, name=name: self._knock(name), read=may_come)  # type: ignore[misc]

    def _knock(self, name: str) -> None:
        if self._carrier is None or len(self._open) >= MAX_TUNNELS:
            return
        try:
            stream, _ = self._doors[name].accept()
        except OSError:
            return
        meta = json.dumps({"op": "tunnel", "door": name}).encode()
        try:
            number = self._carrier.link.open(meta)
        except BlockingIOError:
            stream.close()
            return
        tunnel = Tunnel(self._carrier, number, stream, self)
        self._open.add(tunnel)
        self._carrier.attach(number, tunnel)
        self._watch()


class Tunnel:
    """One connection. Takes from each side only what the other has room for."""

    def __init__(self, connection: Connection, number: int, stream: socket.socket, tunnels: Tunnels) -> None:
        self.connection = connection
        self._number = number
        self._stream = stream
        self._fd = stream.fileno()
        self._tunnels = tunnels
        self._to_write: deque[bytes] = deque()
        self._written = 0  # of the first of them
        self._has_room = True
        self._said_all = False  # the program inside has closed its direction
        self._heard_all = False  # the other end has closed its own
        self._shut = False
        self._is_closed = False
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rewatch()

    # What comes over the channel

    def received(self, data: bytes) -> None:
        self._to_write.append(data)
        self._write()

    def ended(self) -> None:
        self._heard_all = True
        self._write()

    def drained(self) -> None:
        self._has_room = True
        self._rewatch()

    def broken(self) -> None:
        self._close()

    # What comes from inside

    def _on_ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ and not self._is_closed:
            self._read()

    def _read(self) -> None:
        link = self.connection.link
        space = link.space(self._number)
        if space <= 0:
            self._has_room = False
            self._rewatch()
            return
        try:
            data = self._stream.recv(min(space, _READ))
        except BlockingIOError:
            return
        except OSError:
            self._break_off()
            return
        if data:
            link.write(self._number, data)
        else:
            self._said_all = True
            if link.is_open(self._number):
                link.end(self._number)
            self._rewatch()
            self._close_if_done()
        self.connection.flush_soon()

    def _write(self) -> None:
        if self._is_closed:
            return
        try:
            while self._to_write:
                sent = self._stream.send(memoryview(self._to_write[0])[self._written :])
                self._written += sent
                self.connection.link.consumed(self._number, sent)
                if self._written == len(self._to_write[0]):
                    self._to_write.popleft()
                    self._written = 0
            if self._heard_all and not self._shut:
                self._shut = True
                self._stream.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._break_off()
            return
        self._rewatch()
        self.connection.flush_soon()
        self._close_if_done()

    def _rewatch(self) -> None:
        if not self._is_closed:
            read = self._has_room and not self._said_all
            self.connection.resident.loop.watch(self._fd, self._on_ready, read=read, write=bool(self._to_write))

    def _close_if_done(self) -> None:
        if self._said_all and self._shut:
            self._close()

    def _break_off(self) -> None:
        """The program inside is gone."""
        self.connection.refuse(self._number, "the connection was reset")
        self.connection.flush_soon()
        self._close()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.connection.resident.loop.forget(self._fd)
            self._stream.close()
            self._tunnels.closed(self)


def _listener(port: int) -> socket.socket:
    """On the port, or on any other if a program in here has it."""
    for wanted in (port, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", wanted))
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            continue
        listener.setblocking(False)
        return listener
    raise Refused("no port can be listened on in this sandbox")
