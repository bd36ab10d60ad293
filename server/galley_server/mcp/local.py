"""The stdio shim to the server of this home: stdin and stdout on one side, its Unix socket on the other.

One thread and one poll: nothing here may block, because a blocked shim cannot see that its client has gone. Bytes pass
through unparsed as far as possible. Standard library only.
"""

import os
import select
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from galley_server.errors import GalleyError
from galley_server.mcp.launch import Launcher, Starter
from galley_server.mcp.lines import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MAX_CLIENT_LINE,
    MAX_SERVER_LINE,
    LineReader,
    RequestId,
    TooLong,
    error_line,
    id_of,
    parsed,
    too_long_message,
)
from galley_server.mcp.relay import Answer, Relay

_READ = 64 * 1024
# A pipe that polls writable takes this much without blocking (PIPE_BUF). Its O_NONBLOCK flag is not ours to set: other
# processes share the open file.
_PIPE_WRITE = 4096
_TICK_MS = 20
# How much may be waiting for a slow reader before the shim stops reading from the other side.
_TO_SERVER_BYTES = 2 * MAX_CLIENT_LINE
_TO_CLIENT_BYTES = MAX_SERVER_LINE
_FAREWELL_S = 0.5
_CRASH_LIMIT = 3
_CRASH_WINDOW_S = 30.0
_SILENT_LIMIT = 4
_SILENT_DELAY_S = 0.1
_SILENT = "The Galley server takes connections and closes them at once; server.log in its home may say why."


class Outbox:
    """Whole lines for the server. A line counts as sent once the kernel has all of it; until then it can move on."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._offset = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, line: bytes) -> None:
        self._lines.append(line)
        self.size += len(line)

    def flush(self, sock: socket.socket) -> None:
        while self._lines:
            line = self._lines[0]
            self._offset += sock.send(memoryview(line)[self._offset :])
            if self._offset < len(line):
                continue
            self._offset = 0
            self.size -= len(self._lines.popleft())

    def put_first(self, lines: list[bytes]) -> None:
        """What a new server must hear before the rest; a line of which the old one got a part is sent again whole."""
        self._offset = 0
        self._lines.extendleft(reversed(lines))
        self.size += sum(map(len, lines))

    def unsent(self) -> frozenset[RequestId]:
        messages = (parsed(line) for line in self._lines)
        ids = (id_of(message) for message in messages if message is not None and "method" in message)
        return frozenset(id_ for id_ in ids if id_ is not None)

    def clear(self) -> None:
        self._lines.clear()
        self._offset = self.size = 0


class ClientOutput:
    """The client's end of stdout: written only as far as that cannot block."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):  # Node gives its children socket pairs
            self._socket = socket.socket(fileno=os.dup(descriptor))
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self.buffer = bytearray()

    def put(self, line: bytes) -> None:
        self.buffer += line

    def flush(self) -> None:
        while self.buffer:
            if self._socket is not None:
                try:
                    written = self._socket.send(self.buffer, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
            else:
                if not self._poll.poll(0):
                    return
                written = os.write(self._fd, memoryview(self.buffer)[:_PIPE_WRITE])
            del self.buffer[:written]


class ClientGone(Exception):
    """stdin has ended or stdout was closed: there is nobody left to serve."""


class LocalShim:
    """Runs until the client closes its end. Whatever happens to servers meanwhile is not the client's business."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        stdin: int = 0,
        stdout: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._stdin = stdin
        self._clock = clock
        self._client = ClientOutput(stdout)
        self._stdout = stdout
        self._relay = Relay()
        self._from_client = LineReader(MAX_CLIENT_LINE)
        self._from_server = LineReader(MAX_SERVER_LINE)
        self._outbox = Outbox()
        self._server: socket.socket | None = None
        self._starter: Starter | None = None
        self._losses: list[float] = []
        self._silent = 0  # connections in a row on which the server answered nothing

    def run(self) -> None:
        self._seek_server()
        try:
            while True:
                self._turn()
        except (ClientGone, BrokenPipeError):
            self._say_farewell()
        finally:
            self._drop_starter()
            if self._server is not None:
                self._server.close()

    def _turn(self) -> None:
        if self._starter is not None:
            self._try_server()
        ready = self._wait()
        if self._server is not None and ready.get(self._server.fileno()):
            self._read_server()
        if ready.get(self._stdin):
            self._read_client()
        if self._server is not None and self._outbox:
            self._write_server()
        self._client.flush()

    def _wait(self) -> dict[int, int]:
        poll = select.poll()
        # With no events asked for, poll still reports that the client hung up.
        poll.register(self._stdin, select.POLLIN if self._outbox.size < _TO_SERVER_BYTES else 0)
        if self._client.buffer:
            poll.register(self._stdout, select.POLLOUT)
        if self._server is not None:
            wanted = select.POLLIN if len(self._client.buffer) < _TO_CLIENT_BYTES else 0
            poll.register(self._server, wanted | (select.POLLOUT if self._outbox else 0))
        return dict(poll.poll(_TICK_MS if self._starter is not None else None))

    def _read_client(self) -> None:
        try:
            data = os.read(self._stdin, _READ)
        except OSError:
            data = b""
        if not data:
            raise ClientGone
        for line in self._from_client.feed(data):
            if isinstance(line, TooLong):
                problem = too_long_message(MAX_CLIENT_LINE, "client")
                self._client.put(error_line(line.id, INVALID_REQUEST, problem))
                continue
            step = self._relay.from_client(line)
            if isinstance(step, Answer):
                self._client.put(step.line)
            elif self._server is not None or self._starter is not None or step.starts_server:
                self._outbox.put(step.line + b"\n")
                self._seek_server()
            # else: a notification about work that went down with the server; nobody is waiting for it

    def _write_server(self) -> None:
        assert self._server is not None
        try:
            self._outbox.flush(self._server)
        except BlockingIOError:
            pass
        except OSError:
            self._lose_server()

    def _read_server(self) -> None:
        assert self._server is not None
        try:
            data = self._server.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose_server()
            return
        answers = self._relay.answers
        for line in self._from_server.feed(data):
            if isinstance(line, TooLong):
                self._relay.settled(line.id)
                problem = too_long_message(MAX_SERVER_LINE, "server")
                self._client.put(error_line(line.id, INTERNAL_ERROR, f"{problem} Ask for less at once."))
            elif self._relay.from_server(line):
                self._client.put(line + b"\n")
        if self._relay.answers > answers:
            self._silent = 0

    def _lose_server(self) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None
        self._from_server = LineReader(MAX_SERVER_LINE)
        for line in self._relay.lost(self._outbox.unsent()):
            self._client.put(line)
        self._silent += 1
        if self._silent >= _SILENT_LIMIT:
            self._silent = 0
            self._give_up(_SILENT)
            return
        now = self._clock()
        self._losses = [at for at in self._losses if now - at < _CRASH_WINDOW_S] + [now]
        # A server that crashed has sessions to take up again at once. One that was shut down is started again only when
        # the client asks for something, and so is one that keeps crashing.
        crashed = self._launcher.crashed() and len(self._losses) < _CRASH_LIMIT
        if crashed or self._relay.waiting or self._outbox:
            self._seek_server()

    def _seek_server(self) -> None:
        if self._server is None and self._starter is None:
            self._starter = self._launcher.attempt(self._silent * _SILENT_DELAY_S)

    def _try_server(self) -> None:
        assert self._starter is not None
        try:
            found = self._starter.step()
        except (GalleyError, OSError) as error:
            self._give_up(str(error))
            return
        if found is not None:
            self._drop_starter()
            self._server = found
            self._outbox.put_first(self._relay.greeting(self._outbox.unsent()))

    def _give_up(self, reason: str) -> None:
        self._drop_starter()
        self._outbox.clear()
        sys.stderr.write(f"galley mcp: {reason}\n")
        for line in self._relay.failed(reason):
            self._client.put(line)

    def _drop_starter(self) -> None:
        if self._starter is not None:
            self._starter.close()
            self._starter = None

    def _say_farewell(self) -> None:
        """The client's last words still reach the server, if it listens."""
        if self._server is not None and self._outbox:
            self._server.settimeout(_FAREWELL_S)
            with suppress(OSError):
                self._outbox.flush(self._server)
        with suppress(OSError):
            self._client.flush()
