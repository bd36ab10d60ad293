"""Frames of a server: passed on whole, redacted, and never trusted."""

import pytest
from galley_vault_proxy.egress.websocket import ServerFrames
from galley_vault_proxy.errors import Unreachable
from galley_vault_proxy.redact import Patterns
from galley_vault_proxy.secret import Secret

SECRET = b"sk-secret-0123456789"


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    first = bytes([opcode | (0x80 if fin else 0)])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    if len(payload) < 65536:
        return first + b"\x7e" + len(payload).to_bytes(2) + payload
    return first + b"\x7f" + len(payload).to_bytes(8) + payload


def passed(data: bytes, size: int) -> bytes:
    frames = ServerFrames(Patterns([Secret(SECRET.decode())]))
    return b"".join(frames.feed(data[at : at + size]) for at in range(0, len(data), size))


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each message and control frame, in the order of their ends."""
    found: list[tuple[int, bytes]] = []
    opcode, payload = 0, b""
    while data:
        length, size = data[1], 2
        if length == 126:
            length, size = int.from_bytes(data[2:4]), 4
        elif length == 127:
            length, size = int.from_bytes(data[2:10]), 10
        kind, body = data[0] & 15, data[size : size + length]
        if kind >= 8:
            found.append((kind, body))
        else:
            opcode, payload = kind or opcode, payload + body
            if data[0] & 0x80:
                found.append((opcode, payload))
                payload = b""
        data = data[size + length :]
    return found


@pytest.mark.parametrize("size", [1, 3, 64, 100_000])
def test_messages_of_every_length_come_through(size: int) -> None:
    sent = [(1, b""), (2, b"x" * 125), (1, b"y" * 126), (2, b"z" * 70_000), (9, b"ping"), (8, b"\x03\xe8")]
    assert messages(passed(b"".join(frame(*one) for one in sent), size)) == sent


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_secret_is_found_across_the_frames_of_a_message(size: int) -> None:
    data = frame(1, b"a" + SECRET[:5], fin=False) + frame(9, b"hi") + frame(0, SECRET[5:], fin=False) + frame(0, b"z")
    assert messages(passed(data, size)) == [(9, b"hi"), (1, b"a[redacted]z")]


def test_a_secret_in_a_control_frame_is_found() -> None:
    assert messages(passed(frame(8, b"\x03\xe8" + SECRET), 100)) == [(8, b"\x03\xe8[redacted]")]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xc1\x00",  # an extension
        b"\x81\x80\0\0\0\0",  # masked
        frame(0, b"continues nothing"),
        frame(1, b"a", fin=False) + frame(1, b"b"),
        frame(3, b"no such kind"),
        frame(9, b"x", fin=False),
        frame(9, b"x" * 126),
    ],
)
def test_what_is_not_the_protocol_ends_it(nonsense: bytes) -> None:
    with pytest.raises(Unreachable):
        passed(nonsense, 1000)
