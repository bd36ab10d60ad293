"""When to stop asking Vault for a while: after some failures in a row, then one try at a time. No I/O here."""

from dataclasses import dataclass
from typing import Final

_TRIPS_AT: Final = 5
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True)
class Breaker:
    """Time comes in as an argument (monotonic seconds)."""

    failures: int = 0
    reason: str = ""
    _pause_s: float = 0.0
    _next_try: float = 0.0

    def admits(self, now: float) -> bool:
        """Whether to ask. While it is open, whoever is let through keeps the others out for another pause."""
        if self.failures < _TRIPS_AT:
            return True
        if now < self._next_try:
            return False
        self._next_try = now + self._pause_s
        return True

    def succeeded(self) -> None:
        self.failures = 0
        self._pause_s = 0.0

    def failed(self, reason: str, now: float) -> None:
        self.failures += 1
        self.reason = reason
        if self.failures >= _TRIPS_AT:
            self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._next_try = now + self._pause_s
