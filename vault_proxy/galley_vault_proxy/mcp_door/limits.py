"""Every bound of the door in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds. Rates are for each grant."""

    body: int = 4 << 20
    answer: int = 32 << 20
    event: int = 16 << 20
    line: int = 16 << 20
    body_s: float = 30.0
    connect_s: float = 10.0
    list_s: float = 20.0
    call_s: float = 900.0
    stream_s: float = 3600.0
    keepalive_s: float = 15.0
    send_s: float = 60.0
    per_second: float = 1000.0
    burst: int = 2000
    at_once: int = 128
