"""The query string: read once, every parameter by its kind, unknown ones refused by name. No I/O here."""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, Self
from urllib.parse import parse_qsl

from galley_server.errors import InvalidRequest

_MAX_PARAMETERS: Final = 1000
_SHOWN: Final = 80
# Older clients put `beta=true` on every path.
_IGNORED: Final = frozenset({"beta"})
_WHOLE: Final = re.compile(r"[0-9]{1,15}")
# Wider than what we print and narrower than ISO 8601: RFC 3339, with an offset.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


class Query:
    """The parameters of one request. A blank value counts as not given: that is how the TypeScript SDK sends null."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values

    @classmethod
    def parse(cls, raw: bytes, *, takes: Collection[str]) -> Self:
        """Read `raw`; a name ending in `[]` may be given more than once, every other name at most once."""
        values: dict[str, list[str]] = {}
        for name, value in _pairs(raw):
            if name in _IGNORED:
                continue
            if name not in takes:
                raise InvalidRequest(f"{_shown(name)}: unknown query parameter; {_known(name, takes)}")
            given = values.setdefault(name, [])
            if given and not name.endswith("[]"):
                raise InvalidRequest(f"{name}: given more than once")
            if value:
                given.append(value)
        return cls(values)

    def text(self, name: str) -> str | None:
        given = self._values.get(name)
        return given[0] if given else None

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._values.get(name, ()))

    def whole(self, name: str, *, low: int = 1, high: int = 10**15 - 1) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise InvalidRequest(f"{name}: {_shown(text)} is not a whole number from {low} to {high}")
        return int(text)

    def flag(self, name: str) -> bool | None:
        text = self.text(name)
        if text is None:
            return None
        if text not in ("true", "false"):
            raise InvalidRequest(f"{name}: {_shown(text)} is neither true nor false")
        return text == "true"

    def time(self, name: str) -> datetime | None:
        text = self.text(name)
        if text is None:
            return None
        # A plus sign that was not percent-encoded arrives as a blank.
        text = re.sub(r" (?=\d\d:\d\d$)", "+", text)
        try:
            if not _TIME.fullmatch(text):
                raise ValueError(text)
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise InvalidRequest(
                f"{name}: {_shown(text)} is not an RFC 3339 time, e.g. 2026-04-03T18:24:10.412Z"
            ) from None

    def choices(self, name: str, allowed: Collection[str], *, most: int) -> tuple[str, ...]:
        given = self.texts(name)
        if len(given) > most:
            raise InvalidRequest(f"{name}: {len(given)} values, at most {most} are taken")
        for value in given:
            if value not in allowed:
                raise InvalidRequest(f"{name}: {_shown(value)} is not one of {', '.join(sorted(allowed))}")
        return given

    def order(self) -> Literal["asc", "desc"] | None:
        match self.text("order"):
            case None:
                return None
            case "asc":
                return "asc"
            case "desc":
                return "desc"
            case other:
                raise InvalidRequest(f"order: {_shown(other)} is neither asc nor desc")


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


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
