"""Frames: cut the same way however the bytes arrive, and bounded."""

import pytest
from galley_sandbox.frames import HEADER, MAX_PAYLOAD, Frame, FrameReader, FramingError, Kind, encode

FRAMES = [
    Frame(Kind.HELLO, 0, b"galley"),
    Frame(Kind.OPEN, 1, b"{}"),
    Frame(Kind.DATA, 1, bytes(range(256)) * 3),
    Frame(Kind.END, 1, b""),
    Frame(Kind.DATA, 2**32 - 1, b"x"),
]


def read_all(reader: FrameReader) -> list[Frame]:
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    return frames


@pytest.mark.parametrize("piece", [1, 3, 64, 10_000])
def test_frames_come_out_whole_whatever_the_pieces(piece: int) -> None:
    data = b"".join(encode(frame) for frame in FRAMES)
    reader = FrameReader()
    out: list[Frame] = []
    for start in range(0, len(data), piece):
        reader.feed(data[start : start + piece])
        out += read_all(reader)
    assert out == FRAMES


def test_a_frame_over_the_limit_is_refused_before_its_body_arrives() -> None:
    reader = FrameReader()
    reader.feed(HEADER.pack(Kind.DATA, 7, MAX_PAYLOAD + 1))
    with pytest.raises(FramingError, match=r"channel 7 announced 65537 bytes"):
        reader.next_frame()


def test_an_unknown_kind_is_refused() -> None:
    reader = FrameReader()
    reader.feed(HEADER.pack(99, 7, 0))
    with pytest.raises(FramingError, match="unknown kind 99"):
        reader.next_frame()


def test_encoding_refuses_what_the_reader_would() -> None:
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        encode(Frame(Kind.DATA, 1, bytes(MAX_PAYLOAD + 1)))
