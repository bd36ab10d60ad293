"""Ids: the official prefix, then 26 characters of Crockford base32 that sort by time (ULID)."""

import re
import secrets
import time
from typing import Final, Literal, TypeAlias

Prefix: TypeAlias = Literal["agent", "env", "sesn", "sevt", "sthr", "file", "sesrsc", "irow", "req", "msg", "toolu"]

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_ID: Final = re.compile(r"^[a-z]+_[0-9A-Za-z]{1,64}$")


def new_id(prefix: Prefix) -> str:
    """Return `prefix_` + 48 bits of milliseconds + 80 random bits, so ids made later sort later."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return prefix + "_" + "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


def is_id(value: str, prefix: Prefix) -> bool:
    return value.startswith(prefix + "_") and _ID.match(value) is not None
