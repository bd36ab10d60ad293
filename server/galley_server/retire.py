"""When a detached server ends by itself: once nobody has needed it for a while."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

_LOOKS_PER_GRACE = 20
_LONGEST_PAUSE_S = 1.0


class Traffic:
    """Wraps the HTTP app and knows how many requests are under way, streams included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.requests -= 1


@dataclass(slots=True)
class Patience:
    """Counts how long nobody has needed the server. Pure: the time is an argument."""

    grace_s: float
    _unneeded_since: float | None = field(default=None)

    def runs_out(self, *, needed: bool, now: float) -> bool:
        if needed:
            self._unneeded_since = None
            return False
        if self._unneeded_since is None:
            self._unneeded_since = now
        return now - self._unneeded_since >= self.grace_s


async def until_unneeded(needed: Callable[[], bool], retire: Callable[[], bool], *, grace_s: float) -> None:
    """Return when `needed` was false for `grace_s` without a break, and `retire` could then shut the door.

    Polled: what needs the server (a client, a request, a running session) has no common place that could tell.
    """
    patience = Patience(grace_s)
    while not (patience.runs_out(needed=needed(), now=time.monotonic()) and retire()):  # noqa: ASYNC110
        await asyncio.sleep(min(_LONGEST_PAUSE_S, grace_s / _LOOKS_PER_GRACE))
