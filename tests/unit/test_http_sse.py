"""Frames: what the official parser reads out of them."""

from collections.abc import Iterator

import pytest
from anthropic._streaming import ServerSentEvent, SSEDecoder
from galley_server.http.sse import HEARTBEAT, frame


def parsed(*pieces: bytes) -> list[ServerSentEvent]:
    return list(SSEDecoder().iter_bytes(iter(pieces)))


def test_a_frame_carries_type_cursor_and_body() -> None:
    (event,) = parsed(frame("agent.message", b'{"id":"sevt_1"}', cursor="row_7"))
    assert (event.event, event.id, event.json()) == ("agent.message", "row_7", {"id": "sevt_1"})


def test_a_preview_has_no_id_line() -> None:
    assert b"id:" not in frame("event_start", b"{}")


def test_a_heartbeat_is_nothing_to_a_parser() -> None:
    assert parsed(HEARTBEAT) == []
    names = [event.event for event in parsed(frame("a", b"{}", cursor="row_1"), HEARTBEAT, frame("b", b"{}"))]
    assert [name for name in names if name is not None] == ["a", "b"]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_frames_survive_any_cut(size: int) -> None:
    whole = frame("a", '{"t":"é"}'.encode(), cursor="row_1") + HEARTBEAT + frame("b", b"{}", cursor="row_2")

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(whole), size):
            yield whole[start : start + size]

    assert [event.event for event in SSEDecoder().iter_bytes(pieces()) if event.event] == ["a", "b"]
