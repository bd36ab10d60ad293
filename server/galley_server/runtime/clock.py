"""The time as the catalogue keeps it: whole milliseconds, because that is what its answers show.

A list filtered by a time that an answer showed must find the object that showed it.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

Clock: TypeAlias = Callable[[], datetime]

_MILLISECOND: Final = timedelta(milliseconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def floor(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def now() -> datetime:
    return floor(datetime.now(UTC))


def last_shown_as(at: datetime) -> datetime:
    """The last moment that is shown as `at` is shown, or earlier: the bound of "at most" and of "more than"."""
    return floor(at) + (_MILLISECOND - _MICROSECOND)  # in this order, the last moment of all is one too


def first_shown_as(at: datetime) -> datetime:
    """The first moment that is shown as `at`, or later: the bound of "at least" and of "less than"."""
    return at if at == floor(at) or _LATEST - at < _MILLISECOND else floor(at) + _MILLISECOND
