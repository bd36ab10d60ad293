"""Page cursors: opaque to clients, and good only for the list and the order they came from. No I/O here."""

import base64
import binascii
import json
from typing import Final

from galley_server.errors import InvalidRequest

_MAX: Final = 1 << 53
"""More than any row number, and than the microseconds of any time until 2255: a larger one is not of our making."""


def encode(kind: str, *parts: str | int) -> str:
    text = json.dumps([kind, *parts], separators=(",", ":"))
    return "page_" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str, kind: str, *types: type[str] | type[int]) -> tuple[str | int, ...]:
    """Return the parts, of these types. Raises InvalidRequest for a cursor that did not come from this list."""
    try:
        coded = text.removeprefix("page_")
        found = json.loads(base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True))
        if (
            isinstance(found, list)
            and len(found) == len(types) + 1
            and found[0] == kind
            and all(type(part) is expected for part, expected in zip(found[1:], types, strict=True))
            and all(0 <= part <= _MAX for part in found[1:] if isinstance(part, int))
        ):
            return tuple(found[1:])
    except (binascii.Error, ValueError, RecursionError):
        pass
    raise InvalidRequest("page: not a cursor of this list; use the next_page of an earlier answer, unchanged")


def position(text: str | None, kind: str) -> int | None:
    """Read a cursor that is one number."""
    if text is None:
        return None
    (found,) = decode(text, kind, int)
    return int(found)
