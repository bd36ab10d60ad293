"""Channels: windows, halves, fairness and bounds, over bytes in any pieces."""

import pytest
from galley_sandbox.channels import (
    MAX_CONTROL,
    WINDOW,
    Drained,
    Ended,
    Link,
    Opened,
    Ponged,
    Received,
    WasReset,
)
from galley_sandbox.frames import Frame, FramingError, Kind, encode


def carry(sender: Link, receiver: Link, *, piece: int = 1_000_000) -> int:
    """Move everything the sender has; return how many bytes it was."""
    total = 0
    while sender.has_output():
        data = sender.take()
        total += len(data)
        for start in range(0, len(data), piece):
            receiver.receive(data[start : start + piece])
    return total


def events(link: Link) -> list[object]:
    out: list[object] = []
    while (event := link.next_event()) is not None:
        out.append(event)
    return out


def pair() -> tuple[Link, Link]:
    client, hand = Link(first=True), Link(first=False)
    carry(client, hand)
    carry(hand, client)
    return client, hand


@pytest.mark.parametrize("piece", [1, 3, 64])
def test_a_request_and_its_answer_cross_in_any_pieces(piece: int) -> None:
    client, hand = Link(first=True), Link(first=False)
    number = client.open(b"meta")
    client.write(number, b"question")
    client.end(number)
    carry(client, hand, piece=piece)
    assert events(hand) == [Opened(1, b"meta"), Received(1, b"question"), Ended(1)]
    hand.write(1, b"answer")
    hand.end(1)
    carry(hand, client, piece=piece)
    assert events(client) == [Received(1, b"answer"), Ended(1)]
    assert not client.is_open(1)


def test_both_ends_open_channels_of_their_own_numbers() -> None:
    client, hand = pair()
    assert (client.open(b""), client.open(b""), hand.open(b""), hand.open(b"")) == (1, 3, 2, 4)


def test_a_reader_that_does_not_consume_stops_its_channel_and_no_other() -> None:
    client, hand = pair()
    slow, quick = client.open(b"slow"), client.open(b"quick")
    client.write(slow, bytes(WINDOW))
    carry(client, hand)
    client.write(slow, bytes(WINDOW))
    assert carry(client, hand) == 0
    assert client.space(slow) == 0
    client.write(quick, b"through")
    carry(client, hand)
    assert Received(quick, b"through") in events(hand)


def test_consuming_lets_the_sender_go_on_and_tells_it() -> None:
    client, hand = pair()
    number = client.open(b"")
    client.write(number, bytes(WINDOW))
    carry(client, hand)
    client.write(number, bytes(WINDOW))
    assert client.space(number) == 0
    hand.consumed(number, WINDOW)
    carry(hand, client)
    carry(client, hand)
    assert Drained(number) in events(client)
    assert client.space(number) == WINDOW


def test_more_than_the_window_is_a_breach() -> None:
    _, hand = pair()
    hand.receive(encode(Frame(Kind.OPEN, 1, b"")))
    for _ in range(WINDOW // 65536):
        hand.receive(encode(Frame(Kind.DATA, 1, bytes(65536))))
    with pytest.raises(FramingError, match="sent 1 bytes with 0 allowed"):
        hand.receive(encode(Frame(Kind.DATA, 1, b"x")))


def test_channels_share_the_stream_in_turn() -> None:
    client, hand = pair()
    big, small = client.open(b""), client.open(b"")
    client.write(big, bytes(WINDOW))
    client.write(small, b"hello")
    hand.receive(client.take(40_000))
    assert Received(small, b"hello") in events(hand)


def test_a_reset_ends_both_directions_and_late_frames_are_ignored() -> None:
    client, hand = pair()
    number = client.open(b"")
    carry(client, hand)
    hand.reset(number, "no")
    client.write(number, b"late")
    carry(client, hand)
    carry(hand, client)
    assert WasReset(number, "no") in events(client)
    assert not client.is_open(number)


def test_credit_after_our_end_is_harmless() -> None:
    client, hand = pair()
    number = client.open(b"")
    client.write(number, bytes(WINDOW))
    client.end(number)
    carry(client, hand)
    hand.receive(b"")
    client.receive(encode(Frame(Kind.WINDOW, number, (WINDOW).to_bytes(4, "big"))))
    assert not client.has_output()


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (Frame(Kind.OPEN, 2, b""), "not the peer's to open"),
        (Frame(Kind.DATA, 9, b"x"), "never opened"),
        (Frame(Kind.HELLO, 0, b"galley-hand/1"), "greeted twice"),
        (Frame(Kind.OPEN, 1, bytes(20_000)), "opened with 20000 bytes"),
    ],
)
def test_a_breach_is_named(frame: Frame, complaint: str) -> None:
    _, hand = pair()
    with pytest.raises(FramingError, match=complaint):
        hand.receive(encode(frame))


def test_a_stranger_is_refused_at_its_first_frame() -> None:
    with pytest.raises(FramingError, match="expected the greeting"):
        Link(first=False).receive(encode(Frame(Kind.OPEN, 1, b"")))


def test_no_more_channels_than_allowed() -> None:
    hand = Link(first=False, max_peer_channels=2)
    client = Link(first=True)
    for _ in range(3):
        client.open(b"")
    with pytest.raises(FramingError, match="one more than the 2"):
        carry(client, hand)


def test_a_peer_that_asks_and_never_reads_is_cut_off() -> None:
    _, hand = pair()
    ping = encode(Frame(Kind.PING, 0, b"are you there"))
    with pytest.raises(FramingError, match="does not read"):
        hand.receive(ping * (MAX_CONTROL + 1))


def test_a_ping_comes_back() -> None:
    client, hand = pair()
    client.ping(b"7")
    carry(client, hand)
    carry(hand, client)
    assert events(client) == [Ponged(b"7")]
