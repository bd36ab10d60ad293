"""Starting a hand: read the config, shield the process, make the places, listen, run."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from galley_sandbox.hand import hardening
from galley_sandbox.hand.config import parse
from galley_sandbox.hand.connection import Connection
from galley_sandbox.hand.loop import Loop
from galley_sandbox.hand.resident import Resident

if TYPE_CHECKING:
    from galley_sandbox.hand.config import Config

MAX_CONNECTIONS = 8
CONFIG_VARIABLE = "GALLEY_HAND_CONFIG"


class Door:
    """Takes connections, and ends the hand when nobody has been there for too long."""

    def __init__(self, resident: Resident, listener: socket.socket) -> None:
        self._resident = resident
        self._listener = listener
        self._connections: list[Connection] = []
        self._alone_since = resident.loop.now
        listener.setblocking(False)
        resident.loop.watch(listener.fileno(), self._knock)
        self._check()

    def _knock(self, _events: int) -> None:
        try:
            stream, _ = self._listener.accept()
        except OSError:
            return
        # A server that was killed may leave a half-open stream behind; the oldest makes room.
        if len(self._connections) >= MAX_CONNECTIONS:
            self._connections[0].close()
        self._connections.append(Connection(self._resident, stream, self._left))

    def _left(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._alone_since = self._resident.loop.now

    def _check(self) -> None:
        loop, limit = self._resident.loop, self._resident.config.idle_exit_s
        if not self._connections and loop.now - self._alone_since >= limit:
            loop.stop()
        else:
            loop.later(min(10.0, max(0.05, limit / 4)), self._check)


def _listen(config: Config) -> socket.socket:
    if config.listen_fd >= 0:
        os.set_inheritable(config.listen_fd, False)
        return socket.socket(fileno=config.listen_fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(config.listen_path)
    os.chmod(config.listen_path, 0o600)
    listener.listen(MAX_CONNECTIONS)
    return listener


def _make_places(config: Config) -> None:
    os.umask(0)
    for path, mode in ((config.uploads, 0o755), (config.outputs, 0o777), (config.tool_results, 0o777)):
        os.makedirs(path, mode, exist_ok=True)
    os.umask(0o022)


def main() -> None:
    hardening.shield_self()
    config = parse(os.environ.pop(CONFIG_VARIABLE))
    # Standard streams may be the engine's log, which nobody reads and which must never block us.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    _make_places(config)
    listener = _listen(config)
    loop = Loop()
    Door(Resident(loop, config), listener)
    loop.run()
    sys.exit(0)
