"""The query string: read once, every parameter by its kind, unknown ones refused by name. No I/O here."""

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias
from urllib.parse import parse_qsl

from galley_server.errors import InvalidRequest
from galley_server.wire.validation import shown

Kind: TypeAlias = Callable[[str, str], object]
"""Reads one value of a parameter, or raises InvalidRequest, which names it."""

_MAX_PARAMETERS: Final = 1000
# Older clients put `beta=true` on every path.
_IGNORED: Final = frozenset({"beta"})
_WHOLE: Final = re.compile(r"-?[0-9]{1,15}")
# Wider than what we print and narrower than ISO 8601: RFC 3339, with an offset.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def read(raw: bytes, takes: Mapping[str, Kind]) -> dict[str, object]:
    """Return what was given under the names of the SDK's parameters: `created_at[gte]` is `created_at_gte`.

    A name ending in `[]` may be given more than once, every other name at most once. A blank value counts as not
    given: that is how the TypeScript SDK sends null.
    """
    lists: dict[str, list[object]] = {}
    single: dict[str, object] = {}
    for name, value in _pairs(raw):
        if name in _IGNORED:
            continue
        if name not in takes:
            raise InvalidRequest(f"{shown(name)}: unknown query parameter; {_known(name, takes)}")
        if name in single:
            raise InvalidRequest(f"{name}: given more than once")
        if not value:
            continue
        if name.endswith("[]"):
            lists.setdefault(name[:-2], []).append(takes[name](name, value))
        else:
            single[name] = takes[name](name, value)
    return {name.replace("[", "_").rstrip("]"): value for name, value in single.items()} | {
        name: tuple(values) for name, values in lists.items()
    }


def text(name: str, value: str) -> str:
    return value


def whole(name: str, value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise InvalidRequest(f"{name}: {shown(value)} is not a whole number")
    return int(value)


def flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidRequest(f"{name}: {shown(value)} is neither true nor false")
    return value == "true"


def time(name: str, value: str) -> datetime:
    # A plus sign that was not percent-encoded arrives as a blank.
    stamp = re.sub(r" (?=\d\d:\d\d$)", "+", value)
    try:
        if not _TIME.fullmatch(stamp):
            raise ValueError(stamp)
        return datetime.fromisoformat(stamp.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name}: {shown(value)} is not an RFC 3339 time, e.g. 2026-04-03T18:24:10.412Z") from None


def _pairs(raw: bytes) -> list[tuple[str, str]]:
    if not raw:
        return []
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS, errors="strict")
    except UnicodeError:
        raise InvalidRequest("the query string is not percent-encoded UTF-8") from None
    except ValueError:
        raise InvalidRequest(f"the query string has more than {_MAX_PARAMETERS} parameters") from None


def _known(name: str, takes: Collection[str]) -> str:
    if f"{name}[]" in takes:
        return f"write {name}[]"
    if not takes:
        return "this call takes none"
    return f"this call takes {', '.join(sorted(takes))}"
