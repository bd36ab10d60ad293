"""Large content: cut out of a row's body, named by its hash, and put back byte for byte. No I/O here."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LIMIT: Final = 64 * 1024

# Every string literal of a JSON text, quote to quote. Possessive, and content with an unclosed one that goes to the
# end, so that no bytes at all make it look twice at the same place.
_STRING: Final = re.compile(rb'"((?:[^"\\]++|\\.|\\\Z)*+)"?', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Blob:
    hash: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A body as it is stored: what is left of it, and where which blob goes back in (`cuts`, None when whole)."""

    body: bytes
    cuts: str | None
    blobs: tuple[Blob, ...]


def cut(body: bytes, *, limit: int = LIMIT) -> Cut:
    """Take every string longer than the limit out of a body of canonical JSON, so that the same image or file in
    several rows is stored once. A body that is still too long without them is stored as one blob."""
    if len(body) <= limit:
        return Cut(body, None, ())
    spans = [match.span(1) for match in _STRING.finditer(body) if match.end(1) - match.start(1) > limit]
    if len(body) - sum(end - start for start, end in spans) > limit:
        spans = [(0, len(body))]
    rest: list[bytes] = []
    places: list[tuple[int, str]] = []
    blobs: dict[bytes, Blob] = {}
    position = length = 0
    for start, end in spans:
        rest.append(body[position:start])
        length += start - position
        blob = _blob(body[start:end])
        blobs[blob.hash] = blob
        places.append((length, blob.hash.hex()))
        position = end
    rest.append(body[position:])
    return Cut(b"".join(rest), json.dumps(places, separators=(",", ":")), tuple(blobs.values()))


def hashes(cuts: str) -> list[bytes]:
    return [bytes.fromhex(name) for _, name in json.loads(cuts)]


def join(body: bytes, cuts: str, contents: Mapping[bytes, bytes]) -> bytes:
    """Undo `cut`. Raises KeyError when a content is missing."""
    whole: list[bytes] = []
    position = 0
    for place, name in json.loads(cuts):
        whole += (body[position:place], contents[bytes.fromhex(name)])
        position = place
    whole.append(body[position:])
    return b"".join(whole)


def name_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _blob(content: bytes) -> Blob:
    return Blob(name_of(content), content)
