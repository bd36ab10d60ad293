"""The greeting of a tunnel: found in any pieces, believed only with the service key's proof."""

import asyncio

import pytest
from galley_vault_proxy.errors import Unauthenticated
from galley_vault_proxy.preamble import LONGEST, Opening, greeting, read_opening, tunnel_in
from galley_vault_proxy.secret import Secret

KEY = Secret("service-key-0123456789")
LINE = greeting(KEY, "tun_01")
REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize("size", [1, 3, 64, 4096])
def test_the_tunnel_is_found_whatever_the_pieces(size: int) -> None:
    opening, rest, stream = Opening(KEY), b"", LINE + REQUEST
    for start in range(0, len(stream), size):
        rest += opening.feed(stream[start : start + size])
    assert (opening.tunnel, rest) == ("tun_01", REQUEST)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_without_a_greeting_nothing_is_taken_away(size: int) -> None:
    opening, rest = Opening(KEY), b""
    for start in range(0, len(REQUEST), size):
        rest += opening.feed(REQUEST[start : start + size])
    assert (opening.tunnel, rest) == (None, REQUEST)


@pytest.mark.parametrize(
    "line",
    [
        greeting(Secret("another-key-0123456789"), "tun_01"),
        LINE.replace(b"tun_01", b"tun_02"),
        LINE.replace(b"/1 ", b"/1  "),
        LINE[:-2] + b"\n",
        LINE.upper().replace(b"TUN_01", b"tun_01"),
        LINE.replace(b"\n", b" x\n"),
        b"GALLEY-TUNNEL/1 \n",
        b"GALLEY-TUNNEL/1 tun_01\n",
        b"GALLEY-TUNNEL/1 " + b"x" * LONGEST + b"\n",
    ],
)
def test_a_greeting_that_is_not_ours_ends_the_connection(line: bytes) -> None:
    with pytest.raises(Unauthenticated):
        tunnel_in(KEY, line)
    with pytest.raises(Unauthenticated):
        Opening(KEY).feed(line + REQUEST)


def test_a_greeting_without_an_end_is_not_held_for_ever() -> None:
    opening = Opening(KEY)
    assert opening.feed(LINE[:16] + b"x" * (LONGEST - 16)) == b""
    with pytest.raises(Unauthenticated):
        opening.feed(b"x")


def test_a_second_greeting_is_the_clients_own_words() -> None:
    opening = Opening(KEY)
    assert opening.feed(LINE + greeting(KEY, "tun_02")) == greeting(KEY, "tun_02")
    assert opening.tunnel == "tun_01"


@pytest.mark.parametrize("tunnel", ["", "a b", "a\n", "x" * 129, "ü"])
def test_a_tunnel_id_fits_a_line(tunnel: str) -> None:
    with pytest.raises(ValueError):
        greeting(KEY, tunnel)


@pytest.mark.anyio
@pytest.mark.parametrize(("sent", "tunnel", "rest"), [(LINE + b"x", "tun_01", b"x"), (b"CONNECT", None, b"CONNECT")])
async def test_a_stream_is_read_no_further_than_its_opening(sent: bytes, tunnel: str | None, rest: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(sent)
    reader.feed_eof()
    assert await read_opening(reader, KEY) == (tunnel, rest)


@pytest.mark.anyio
async def test_a_stream_that_ends_within_its_greeting_has_no_tunnel() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(LINE[:20])
    reader.feed_eof()
    assert await read_opening(reader, KEY) == (None, b"")
