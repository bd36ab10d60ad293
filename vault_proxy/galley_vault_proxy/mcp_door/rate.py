"""How much one grant may ask: a bucket of tokens, and how many requests may be under way. Pure but for the clock."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from galley_vault_proxy.errors import RateLimited


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    under_way: int = 0


@dataclass(slots=True)
class Rates:
    """`per_second` on average, `burst` at once, `at_once` under way at a time; for each grant."""

    per_second: float
    burst: int
    at_once: int
    clock: Callable[[], float]
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    @contextmanager
    def take(self, grant_id: str) -> Iterator[None]:
        """Raises RateLimited."""
        bucket = self._refilled(grant_id)
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) / self.per_second)
            raise RateLimited(
                f"too many requests with this grant: at most {self.per_second:g} a second", retry_after=wait
            )
        if bucket.under_way >= self.at_once:
            raise RateLimited(
                f"too many requests of this grant are under way: at most {self.at_once} at once", retry_after=1
            )
        bucket.tokens -= 1
        bucket.under_way += 1
        try:
            yield
        finally:
            bucket.under_way -= 1

    def _refilled(self, grant_id: str) -> _Bucket:
        now = self.clock()
        bucket = self._buckets.get(grant_id)
        if bucket is None:
            self._forget_full(now)
            bucket = self._buckets[grant_id] = _Bucket(self.burst, now)
        bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.at) * self.per_second)
        bucket.at = now
        return bucket

    def _forget_full(self, now: float) -> None:
        """A bucket that nobody has touched for long is full again, which is what a new one is."""
        if len(self._buckets) < 1024:
            return
        rest = self.burst / self.per_second
        for key in [key for key, old in self._buckets.items() if not old.under_way and now - old.at > rest]:
            del self._buckets[key]
