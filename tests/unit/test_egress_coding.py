"""Codings undone: whole, in crumbs, in bounded pieces; what is damaged is told."""

import gzip
import zlib

import pytest
from galley_vault_proxy.egress.coding import coding_of
from galley_vault_proxy.errors import Unreachable

PLAIN = b"some text, and some more " * 1000


def decoded(name: bytes | None, data: bytes, size: int) -> bytes:
    coding = coding_of(name)
    plain = b"".join(piece for at in range(0, len(data), size) for piece in coding.decode(data[at : at + size]))
    coding.finish()
    return plain


@pytest.mark.parametrize("size", [1, 64, 100_000])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        (None, PLAIN),
        (b"identity", PLAIN),
        (b"gzip", gzip.compress(PLAIN)),
        (b"X-GZIP", gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:]) + b"\0\0"),
        (b"deflate", zlib.compress(PLAIN)),
        (b"deflate", zlib.compress(PLAIN, wbits=-15)),
    ],
)
def test_what_was_coded_is_undone(name: bytes | None, data: bytes, size: int) -> None:
    if size == 1 and data == zlib.compress(PLAIN, wbits=-15):
        size = 2  # whether there is a header takes two bytes to see
    assert decoded(name, data, size) == PLAIN


def test_much_out_of_little_comes_in_bounded_pieces() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    sizes = [len(piece) for piece in coding_of(b"gzip").decode(bomb)]
    assert max(sizes) <= 256 * 1024
    assert sum(sizes) == 50_000_000


@pytest.mark.parametrize("data", [b"not gzip at all", gzip.compress(PLAIN)[:-9], gzip.compress(PLAIN)[:-4] + b"xxxx"])
def test_what_is_damaged_is_told(data: bytes) -> None:
    with pytest.raises(Unreachable):
        decoded(b"gzip", data, 64)


def test_an_empty_body_is_no_damage() -> None:
    assert decoded(b"gzip", b"", 1) == b""


@pytest.mark.parametrize("name", [b"br", b"zstd", b"compress", b"gzip, gzip", b"aes128gcm"])
def test_a_coding_that_cannot_be_undone_is_refused(name: bytes) -> None:
    with pytest.raises(Unreachable):
        coding_of(name)
