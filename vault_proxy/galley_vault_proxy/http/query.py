"""The query string: read once, every parameter by its kind, unknown ones refused by name. No I/O here."""

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias
from urllib.parse import parse_qsl

from galley_vault_proxy.errors import InvalidRequest

Kind: TypeAlias = Callable[[str, str], object]
"""Reads one value of a parameter, or raises InvalidRequest, which names it."""

_MAX_PARAMETERS: Final = 100
# Older clients put `beta=true` on every path.
_IGNORED: Final = frozenset({"beta"})
_WHOLE: Final = re.compile(r"-?[0-9]{1,15}")


def read(raw: bytes, takes: Mapping[str, Kind]) -> dict[str, object]:
    """Return what was given. A blank value counts as not given: that is how the TypeScript SDK sends null."""
    given: dict[str, object] = {}
    for name, value in _pairs(raw):
        if name in _IGNORED:
            continue
        if name not in takes:
            known = ", ".join(sorted(takes))
            raise InvalidRequest(f"{name[:80]}: unknown query parameter; this call takes {known or 'none'}")
        if name in given:
            raise InvalidRequest(f"{name}: given more than once")
        if value:
            given[name] = takes[name](name, value)
    return given


def text(name: str, value: str) -> str:
    return value


def whole(name: str, value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise InvalidRequest(f"{name}: not a whole number")
    return int(value)


def flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidRequest(f"{name}: neither true nor false")
    return value == "true"


def _pairs(raw: bytes) -> list[tuple[str, str]]:
    if not raw:
        return []
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS, errors="strict")
    except UnicodeError:
        raise InvalidRequest("the query string is not percent-encoded UTF-8") from None
    except ValueError:
        raise InvalidRequest(f"the query string has more than {_MAX_PARAMETERS} parameters") from None
