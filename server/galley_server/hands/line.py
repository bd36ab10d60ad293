"""The connection to one sandbox's hand, and the bounds on how long the hand may keep anybody waiting."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from galley_sandbox.errors import HandMisbehaved, SandboxError, SandboxLost
from galley_sandbox.port import Hand

from galley_server.hands.port import Mount
from galley_server.hands.supply import Placed

log: Final = logging.getLogger(__name__)

CONNECT_S: Final = 25.0
CONNECT_AGAIN_S: Final = (0.05, 0.2, 0.5)
"""Pauses between attempts to reach a sandbox; after the last it counts as lost."""

LOST: Final = "the sandbox was lost; the next call gets a fresh one, without earlier files"


@dataclass(eq=False, slots=True)
class Held:
    """The session's sandbox and what was done to it."""

    placed: Placed
    mounted: set[Mount] = field(default_factory=set)
    """Files that are in place, or were refused and told of."""
    lost: bool = False
    """Not to be used again, only to be removed."""


@dataclass(eq=False, slots=True)
class Line:
    """An open connection to the hand of one incarnation."""

    held: Held
    hand: Hand
    heard: float
    dropped: bool = False
    """Given up by us: whoever holds it lets it go."""
    stir: asyncio.Event = field(default_factory=asyncio.Event)
    """Wakes the task that holds the connection: there are results to acknowledge, or the line is dropped."""

    @property
    def incarnation(self) -> str:
        return self.held.placed.sandbox.incarnation

    @property
    def bad(self) -> bool:
        """No new call uses it: it broke, or is not to be trusted any more."""
        return self.dropped or not self.hand.connected

    def fail(self, error: SandboxLost) -> None:
        if isinstance(error, HandMisbehaved):
            log.warning("sandbox %s is given up: %s", self.held.placed.sandbox.id, error)
            self.held.lost = True
        self.drop()

    def drop(self) -> None:
        self.dropped = True
        self.stir.set()


@dataclass(eq=False, slots=True)
class Attempt:
    """One try at a connection, shared by all who wait for it."""

    may_provision: bool
    wanted: str | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    line: Line | None = None
    error: SandboxError | None = None

    def succeed(self, line: Line) -> None:
        self.line = line
        self.ended.set()

    def fail(self, error: SandboxError) -> None:
        self.error = error
        self.ended.set()


async def connect(placed: Placed, stack: AsyncExitStack) -> Hand:
    """Open a line that `stack` closes. Raises SandboxError."""
    try:
        async with asyncio.timeout(CONNECT_S):
            for pause in CONNECT_AGAIN_S:
                try:
                    return await stack.enter_async_context(placed.sandbox.connect())
                except HandMisbehaved:
                    raise
                except SandboxLost:
                    await asyncio.sleep(pause)
            return await stack.enter_async_context(placed.sandbox.connect())
    except HandMisbehaved:
        raise
    except (SandboxLost, TimeoutError) as error:
        log.info("sandbox %s is lost: %r", placed.sandbox.id, error)
        raise SandboxLost(LOST) from error


@asynccontextmanager
async def answer_within(limit_s: float) -> AsyncIterator[asyncio.Timeout]:
    """A hand that keeps silent for longer is as good as gone: no session waits for one for ever."""
    try:
        async with asyncio.timeout(limit_s) as patience:
            yield patience
    except TimeoutError:
        raise SandboxLost(f"the hand did not answer within {limit_s:.0f} s") from None
