"""HTTP to one Galley server, for the stdio shim: blocking, TLS verified, kept alive. Standard library only."""

import http.client
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from galley_server.errors import ConfigError

CONNECT_S = 10.0
# Galley sends a comment every 15 s on a stream that has nothing to say; silence beyond this means the line is dead.
SILENCE_S = 90.0
# A server closes idle connections (uvicorn: after 5 s). A call must not be lost to one that is just being closed.
_REUSE_S = 2.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Address:
    """Where GALLEY_URL points."""

    tls: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        wrong = f"GALLEY_URL is {url!r}: give the address of a Galley server, such as https://galley.example.com"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError(wrong) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(wrong)
        if parts.username is not None:
            raise ConfigError("GALLEY_URL holds a name or a password: give the key in GALLEY_API_KEY instead")
        path = parts.path.rstrip("/")
        if not path.endswith("/mcp"):
            path += "/mcp"
        tls = parts.scheme == "https"
        return cls(tls, parts.hostname, port or (443 if tls else 80), path)

    @property
    def exposes_key(self) -> bool:
        return not self.tls and self.host not in _LOOPBACK

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


class NotReached(Exception):
    """No connection could be made: whatever was to be sent has not been sent."""


class Call:
    """One request under way. `abort` may be called from another thread."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection
        self._socket: socket.socket | None = connection.sock
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class Upstream:
    def __init__(self, address: Address, api_key: str) -> None:
        self.address = address
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._lock = threading.Lock()
        if api_key and address.exposes_key:
            sys.stderr.write(f"galley mcp: {address} is not encrypted: anybody on the way can read GALLEY_API_KEY\n")

    @contextmanager
    def call(self) -> Iterator[Call]:
        """A connection for one request. It is used again if the response was read to its end. Raises NotReached."""
        connection = self._take() or self._connect()
        try:
            yield Call(connection)
        except BaseException:
            connection.close()
            raise
        if connection.sock is None:
            return
        with self._lock:
            self._idle.append((time.monotonic(), connection))

    def send(self, call: Call, method: str, headers: Mapping[str, str], body: bytes | None) -> http.client.HTTPResponse:
        everything = {**self._headers, "User-Agent": "galley-mcp-shim", **headers}
        call.connection.request(method, self.address.path, body=body, headers=everything)
        return call.connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=CONNECT_S)
            if self._tls is None
            else http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=self._tls)
        )
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise NotReached(f"{self.address}: its certificate is not trusted ({error.verify_message})") from error
        except OSError as error:
            raise NotReached(f"{self.address} cannot be reached: {error}") from error
        connection.sock.settimeout(SILENCE_S)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _take(self) -> http.client.HTTPConnection | None:
        now = time.monotonic()
        with self._lock:
            while self._idle:
                since, connection = self._idle.pop()
                # Readable means closed: nobody has asked anything on it.
                if now - since < _REUSE_S and not select.select([connection.sock], [], [], 0)[0]:
                    return connection
                connection.close()
        return None
