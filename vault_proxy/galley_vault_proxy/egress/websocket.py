"""What a server says on a WebSocket, with the secrets taken out. No I/O here.

The frames of a message are made anew, because a message without its secrets has another length. Frames of a server
are not masked (RFC 6455 section 5.1), and compression is never agreed on: the handshake goes out without extensions.
"""

from typing import Final

from galley_vault_proxy.errors import Unreachable
from galley_vault_proxy.redact import Patterns, Redactor

_CONTINUATION: Final = 0
_CLOSE: Final = 8
_FIN: Final = 0x80
_MOST_IN_CONTROL: Final = 125


class ServerFrames:
    """Give what comes to `feed` and pass on what it returns. Raises Unreachable when it is not the protocol."""

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self._held = bytearray()
        self._redactor = Redactor(patterns)
        self._first = 0  # opcode of the message that no frame was sent of yet
        self._in_message = False
        self._left = 0  # of the payload of the frame that is being read
        self._last = False
        self._in_frame = False

    def feed(self, data: bytes) -> bytes:
        self._held += data
        out: list[bytes] = []
        while True:
            if self._in_frame:
                if not self._take_payload(out):
                    return b"".join(out)
            elif not self._take_header(out):
                return b"".join(out)

    def _take_payload(self, out: list[bytes]) -> bool:
        """False: wait for more."""
        piece = bytes(self._held[: self._left])
        del self._held[: len(piece)]
        self._left -= len(piece)
        done = self._left == 0 and self._last
        plain = self._redactor.feed(piece)
        if done:
            plain += self._redactor.flush()
        if plain or done:
            out.append(_frame(self._first, plain, fin=done))
            self._first = _CONTINUATION
        if self._left:
            return False
        self._in_frame = False
        if done:
            self._in_message = False
        return True

    def _take_header(self, out: list[bytes]) -> bool:
        header = _header(self._held)
        if header is None:
            return False
        size, fin, opcode, length = header
        if opcode >= _CLOSE:
            return self._take_control(out, size, fin, opcode, length)
        if (opcode == _CONTINUATION) != self._in_message or opcode > 2:
            raise _broken("a frame that continues nothing, or begins within a message")
        del self._held[:size]
        if not self._in_message:
            self._first, self._in_message = opcode, True
            self._redactor = Redactor(self._patterns)
        self._left, self._last, self._in_frame = length, fin, True
        return True

    def _take_control(self, out: list[bytes], size: int, fin: bool, opcode: int, length: int) -> bool:
        if not fin or length > _MOST_IN_CONTROL:
            raise _broken("a control frame that is too long or in parts")
        if len(self._held) < size + length:
            return False
        payload = self._patterns.redact(bytes(self._held[size : size + length]))[:_MOST_IN_CONTROL]
        del self._held[: size + length]
        out.append(_frame(opcode, payload, fin=True))
        return True


def _header(data: bytearray) -> tuple[int, bool, int, int] | None:
    """Size of the header, whether it is the last of its message, opcode, length of the payload."""
    if len(data) < 2:
        return None
    if data[0] & 0x70:
        raise _broken("an extension that nobody agreed on")
    if data[1] & 0x80:
        raise _broken("a masked frame from a server")
    length, size = data[1] & 0x7F, 2
    if length >= 126:
        size = 4 if length == 126 else 10
        if len(data) < size:
            return None
        length = int.from_bytes(data[2:size])
    return size, bool(data[0] & _FIN), data[0] & 0x0F, length


def _frame(opcode: int, payload: bytes, *, fin: bool) -> bytes:
    first = opcode | (_FIN if fin else 0)
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 1 << 16:
        return bytes((first, 126)) + len(payload).to_bytes(2) + payload
    return bytes((first, 127)) + len(payload).to_bytes(8) + payload


def _broken(what: str) -> Unreachable:
    return Unreachable(f"the host sent {what} on the WebSocket", error_code="bad_websocket")
