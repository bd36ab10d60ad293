"""Times as the store keeps them: whole microseconds since 1970, UTC. No clock is read here."""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    # Exact: a double holds today's microseconds with room to spare, and the conversion rounds to them.
    return datetime.fromtimestamp(micros / 1_000_000, UTC)
