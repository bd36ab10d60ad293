"""The first message of a TLS client, read without answering it: which name it asks for. No I/O here.

RFC 8446 section 4.1.2, RFC 6066 section 3. What could mean one name to us and another to the server is refused:
two names, an extension sent twice, bytes that belong to nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from galley_vault_proxy.errors import InvalidRequest

MAX_HELLO: Final = 32 * 1024
"""The largest hello read. Those with post-quantum key shares take about two thousand bytes."""
_MAX_FRAGMENT: Final = 16 * 1024
_MAX_RECORDS: Final = 64
_RECORD_HEADER: Final = 5
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_OTHER_RECORDS: Final = (20, 21)  # changes of cipher, alerts
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_EARLY_DATA: Final = 42
_MOST_EARLY: Final = 256 * 1024
_ENCRYPTED_HELLO: Final = 0xFE0D


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`server_name` as it was sent, in lower case. `hides_name`: another hello is, or seems to be, encrypted inside.

    `talks_early`: data may follow at once, before the server has answered.
    """

    server_name: str | None
    hides_name: bool = False
    talks_early: bool = False


class BadHello(InvalidRequest):
    """It begins like TLS and is not a hello that one could rely on."""


def is_tls(data: bytes) -> bool:
    """Whether a connection that begins with these bytes, at least one, can only be TLS."""
    return data[0] == _HANDSHAKE


class HelloReader:
    """Takes the bytes of a connection until the hello is whole; it may lie in several records."""

    def __init__(self) -> None:
        self._records = bytearray()
        self._message = bytearray()
        self._count = 0

    def feed(self, data: bytes) -> ClientHello | None:
        """Return the hello, or None until more bytes arrive. Raises BadHello."""
        self._records += data
        while (fragment := self._next_fragment()) is not None:
            self._message += fragment
            if len(self._message) < 4:
                continue
            if self._message[0] != _CLIENT_HELLO:
                raise BadHello("the TLS handshake does not begin with a client's hello")
            length = int.from_bytes(self._message[1:4])
            if length > MAX_HELLO:
                raise BadHello(f"the TLS hello is larger than {MAX_HELLO} bytes")
            if len(self._message) > 4 + length:
                raise BadHello("something follows the TLS hello in its record")
            if len(self._message) == 4 + length:
                return parse(bytes(self._message[4:]))
        return None

    @property
    def unread(self) -> int:
        """How many bytes came behind the hello."""
        return len(self._records)

    def _next_fragment(self) -> bytes | None:
        if not self._records:
            return None
        if self._records[0] != _HANDSHAKE or (len(self._records) > 1 and self._records[1] != 3):
            raise BadHello("a TLS record that is no part of a hello came before its end")
        if len(self._records) < _RECORD_HEADER:
            return None
        length = int.from_bytes(self._records[3:_RECORD_HEADER])
        if not 0 < length <= _MAX_FRAGMENT:
            raise BadHello(f"a TLS record of {length} bytes is not allowed in a hello")
        end = _RECORD_HEADER + length
        if len(self._records) < end:
            return None
        self._count += 1
        if self._count > _MAX_RECORDS:
            raise BadHello(f"the TLS hello lies in more than {_MAX_RECORDS} records")
        fragment = bytes(self._records[_RECORD_HEADER:end])
        del self._records[:end]
        return fragment


class AfterHello:
    """Watches what a client sends after its hello, for a second one.

    A server that finds no key it can use asks for another hello (RFC 8446 section 4.1.4), and not every server
    compares the names in the two. `check` is called with the second hello before a byte of it is passed on.
    """

    def __init__(self, first: ClientHello, check: Callable[[ClientHello], None]) -> None:
        self._early = _MOST_EARLY if first.talks_early else 0
        self._check = check
        self._held = bytearray()
        self._second: HelloReader | None = None
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Return what may be passed on now. Raises BadHello, and what `check` raises."""
        if self.done:
            return data
        self._held += data
        if self._second is not None:
            return self._read_second(data)
        out = bytearray()
        while not self.done and len(self._held) >= _RECORD_HEADER + 1:
            kind, size = self._held[0], _RECORD_HEADER + int.from_bytes(self._held[3:_RECORD_HEADER])
            if kind == _HANDSHAKE and self._held[_RECORD_HEADER] == _CLIENT_HELLO:
                self._second = HelloReader()
                return bytes(out) + self._read_second(bytes(self._held))
            if kind == _APPLICATION_DATA:
                self._early -= size
            if kind not in _OTHER_RECORDS and (kind != _APPLICATION_DATA or self._early < 0):
                self.done = True  # the handshake is past the point where it could begin anew
            elif len(self._held) < size:
                break
            else:
                out += self._held[:size]
                del self._held[:size]
        return bytes(out) + self._rest()

    def _read_second(self, data: bytes) -> bytes:
        assert self._second is not None
        hello = self._second.feed(data)
        if hello is None:
            return b""
        self._check(hello)
        self.done = True
        return self._rest()

    def _rest(self) -> bytes:
        rest = bytes(self._held) if self.done else b""
        if self.done:
            self._held.clear()
        return rest


def parse(body: bytes) -> ClientHello:
    """The body of a hello, without the header of its message. Raises BadHello."""
    whole = _Bytes(body)
    whole.take(2 + 32)  # version, random
    whole.vector(1)  # session
    if len(whole.vector(2)) % 2:
        raise BadHello("the TLS hello's cipher suites are cut off")
    whole.vector(1)  # compression
    if not whole.left:
        return ClientHello(None)
    extensions = _Bytes(whole.vector(2))
    whole.require_end()
    name: str | None = None
    seen: set[int] = set()
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in seen:
            raise BadHello("the TLS hello has the same extension twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(content)
    return ClientHello(name, hides_name=_ENCRYPTED_HELLO in seen, talks_early=_EARLY_DATA in seen)


def _server_name(content: bytes) -> str:
    extension = _Bytes(content)
    names = _Bytes(extension.vector(2))
    extension.require_end()
    kind, name = names.number(1), names.vector(2)
    names.require_end()
    if kind != 0 or not name or not name.isascii() or not name.decode().isprintable():
        raise BadHello("the server name in the TLS hello is not a host name")
    return name.decode().lower()


class _Bytes:
    """What is left of a message. Raises BadHello where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise BadHello("the TLS hello is cut off")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, length_size: int) -> bytes:
        return self.take(self.number(length_size))

    def require_end(self) -> None:
        if self.left:
            raise BadHello("the TLS hello holds bytes that belong to nothing")
