"""Joins its standard input and output to the hand's socket: what the engine's exec runs for each connection."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

_READ = 256 * 1024
_ATTEMPTS = 2000
_BETWEEN_S = 0.005


def main() -> None:
    stream = _connect(sys.argv[1])
    threading.Thread(target=_pump_in, args=(stream,), daemon=True).start()
    while True:
        data = stream.recv(_READ)
        if not data:
            return
        _write_all(data)


def _connect(path: str) -> socket.socket:
    """The first bridge may well be here before the hand listens."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for _ in range(_ATTEMPTS):
        try:
            stream.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(_BETWEEN_S)
        else:
            return stream
    raise TimeoutError(path)


def _pump_in(stream: socket.socket) -> None:
    while True:
        data = os.read(0, _READ)
        if not data:
            # The server's end is gone; so are we.
            stream.shutdown(socket.SHUT_RDWR)
            return
        stream.sendall(data)


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
