"""Content codings undone as the bytes come, for hosts that compress although they were asked not to. No I/O."""

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

from galley_vault_proxy.errors import Unreachable

_AT_ONCE: Final = 256 * 1024


class Coding(Protocol):
    def decode(self, data: bytes) -> Iterator[bytes]:
        """Pieces of bounded size, however much a little may stand for. Raises Unreachable when it is damaged."""
        ...

    def finish(self) -> None:
        """Raises Unreachable when the end is missing."""
        ...


class Identity:
    def decode(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        """There is nothing that could be missing."""


class Inflate:
    """gzip, of one member or more, and deflate with or without the header that it should have."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._bits = zlib.MAX_WBITS | 16 if is_gzip else zlib.MAX_WBITS
        self._inflate = zlib.decompressobj(self._bits)
        self._began = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            if self._inflate.eof:
                if not self._is_gzip or not data.strip(b"\0"):
                    return  # some pad the end with zeros
                self._inflate = zlib.decompressobj(self._bits)
            plain = self._some(data)
            self._began = True
            if plain:
                yield plain
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            # With all of the data taken in, a part of what it stands for may still be inside.
            full = len(plain) == _AT_ONCE

    def finish(self) -> None:
        if self._began and not self._inflate.eof:
            raise _damaged()

    def _some(self, data: bytes) -> bytes:
        try:
            return self._inflate.decompress(data, _AT_ONCE)
        except zlib.error:
            if self._is_gzip or self._began:
                raise _damaged() from None
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            return self._inflate.decompress(data, _AT_ONCE)
        except zlib.error:
            raise _damaged() from None


def coding_of(content_encoding: bytes | None) -> Coding:
    """Raises Unreachable for a coding that cannot be undone here."""
    match (content_encoding or b"identity").strip().lower():
        case b"identity" | b"":
            return Identity()
        case b"gzip" | b"x-gzip":
            return Inflate(is_gzip=True)
        case b"deflate":
            return Inflate(is_gzip=False)
        case _:
            raise Unreachable(
                "the host answered in a coding that it was not asked for, in which a secret could not be seen",
                error_code="encoded_response",
            )


def _damaged() -> Unreachable:
    return Unreachable("the host's compressed answer is damaged", error_code="encoded_response")
