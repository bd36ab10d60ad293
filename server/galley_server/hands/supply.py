"""Where sandboxes come from and go to: the driver that a probe chose, what survived a restart, how many may live."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, TypeAlias

from galley_sandbox.errors import SandboxError, SandboxUnavailable
from galley_sandbox.port import Driver, Limits, Sandbox, Spec

from galley_server.hands.port import LiveSessions

log: Final = logging.getLogger(__name__)

Spawn: TypeAlias = Callable[[Callable[[], Coroutine[None, None, None]], str], asyncio.Task[None]]
"""Start a named task in the group that owns it, where an unexpected failure is logged and ends nothing else."""

ADOPT_S: Final = 15.0
PROBE_S: Final = 60.0
PROVISION_S: Final = 120.0
DESTROY_AGAIN_S: Final = (1.0, 5.0, 15.0, 60.0)


@dataclass(frozen=True, slots=True)
class Placed:
    """A sandbox and the driver it belongs to. `survived`: an earlier server process provisioned it."""

    driver: Driver
    sandbox: Sandbox
    survived: bool


class Supply:
    """Gives each session at most one sandbox, and at most `most` sandboxes in all.

    `drivers` are tried in order; the first whose probe succeeds is chosen for the life of this server. Before a driver
    provisions anything, what it left of an earlier run is adopted, or destroyed if its session is over; `survived` is
    called with the session of each that is adopted. `former` are drivers that make nothing any more: what they made
    under other settings is adopted or destroyed all the same.
    """

    def __init__(
        self,
        drivers: Sequence[Driver],
        sessions: LiveSessions,
        spawn: Spawn,
        *,
        former: Sequence[Driver],
        survived: Callable[[str], None],
        limits: Limits,
        most: int,
        at_once: int,
    ) -> None:
        self._drivers = tuple(drivers)
        self._every = (*self._drivers, *former)
        self._sessions = sessions
        self._spawn = spawn
        self._survived = survived
        self._limits = limits
        self._most = most
        self._at_once = asyncio.Semaphore(at_once)
        self._taken: set[str] = set()
        self._survivors: dict[str, list[Placed]] = {}
        self._settled = asyncio.Event()
        self._adopted: set[str] = set()
        self._adopting = {driver.name: asyncio.Lock() for driver in self._every}
        self._chosen: Driver | None = None
        self._probing: asyncio.Task[None] | None = None
        self._failure = SandboxUnavailable("The probe of the sandbox failed unexpectedly.", fix="see the server's log.")

    async def adopt(self) -> None:
        """Find what every driver left. A driver that cannot be reached now is asked again before it provisions."""
        try:
            for task in [
                self._spawn(partial(self._try_to_adopt, driver), f"adopt {driver.name}") for driver in self._every
            ]:
                await asyncio.wait([task])
        finally:
            self._settled.set()

    async def choose(self) -> Driver:
        """The driver for new sandboxes. Raises SandboxUnavailable: the next call tries again.

        A first probe may build an image. It goes on in the background when who waits for it has waited long enough.
        """
        if self._chosen is None:
            await self._probed()
        if self._chosen is None:
            raise SandboxUnavailable(self._failure.message, fix=self._failure.fix)
        return self._chosen

    async def provision(self, session_id: str) -> Placed:
        """A new sandbox, for a session that has none. Raises SandboxError."""
        with self._place(session_id):
            driver = await self.choose()
            await self._adopt(driver)
            if (survivor := await self.survivor(session_id)) is not None:
                return survivor
            # A slow engine delays those who wait for it, and nobody else.
            async with self._at_once:
                return await self._provision(driver, session_id)

    async def survivor(self, session_id: str, *, wanted: str | None = None) -> Placed | None:
        """Hand over what survived for a session: the incarnation wanted, if it did. Any others are removed."""
        await self._settled.wait()
        found = self._survivors.pop(session_id, [])
        if not found:
            return None
        kept = next((placed for placed in found if placed.sandbox.incarnation == wanted), found[-1])
        for placed in found:
            if placed is not kept:
                self._remove_beside(placed)
        return kept

    async def surviving(self) -> Mapping[str, int]:
        """How many sandboxes survived for each session and were not handed over yet."""
        await self._settled.wait()
        return {session_id: len(found) for session_id, found in self._survivors.items()}

    async def remove(self, placed: Placed) -> None:
        """Destroy a session's sandbox. Raises SandboxError if it may still be there; its place stays taken then."""
        try:
            await placed.driver.destroy(placed.sandbox.id)
        except OSError as error:
            raise SandboxUnavailable(
                f"The lost sandbox {placed.sandbox.id} could not be removed: {error!r}.",
                fix="see what holds it, then try again.",
            ) from error
        self._taken.discard(placed.sandbox.session_id)

    async def remove_for_good(self, placed: Placed) -> None:
        """Destroy a session's sandbox, trying again until it is gone."""
        await self._until_gone(placed)
        self._taken.discard(placed.sandbox.session_id)

    @contextmanager
    def _place(self, session_id: str) -> Iterator[None]:
        if session_id not in self._taken and len(self._taken) >= self._most:
            raise SandboxUnavailable(
                f"{len(self._taken)} sandboxes are in use, which is the limit of this server.",
                fix="archive or delete sessions that are done, then try again.",
            )
        self._taken.add(session_id)
        try:
            yield
        except BaseException:
            self._taken.discard(session_id)
            raise

    async def _provision(self, driver: Driver, session_id: str) -> Placed:
        try:
            async with asyncio.timeout(PROVISION_S):
                return Placed(driver, await driver.provision(Spec(session_id, self._limits)), survived=False)
        except TimeoutError:
            raise _too_slow(driver, "start a sandbox", PROVISION_S) from None

    async def _probed(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = self._spawn(self._probe, "probe")
        done, _ = await asyncio.wait([self._probing], timeout=PROBE_S)
        if not done:
            raise SandboxUnavailable(
                "The sandboxes of this server are still being set up.", fix="try again in a minute."
            )

    async def _probe(self) -> None:
        failures: list[SandboxUnavailable] = []
        for driver in self._drivers:
            try:
                probe = await driver.probe()
            except SandboxUnavailable as error:
                failures.append(error)
            else:
                log.info("sandboxes are made by %s (%s)", probe.driver, probe.detail)
                self._chosen = driver
                return
        self._failure = SandboxUnavailable(
            " ".join(["No sandbox can be started here.", *(failure.message for failure in failures)]),
            fix=" Or: ".join(failure.fix for failure in failures),
        )

    async def _try_to_adopt(self, driver: Driver) -> None:
        try:
            await self._adopt(driver)
        except SandboxError as error:
            log.info("nothing adopted from %s: %s", driver.name, error)

    async def _adopt(self, driver: Driver) -> None:
        """Once per driver and server life, however many ask."""
        async with self._adopting[driver.name]:
            if driver.name in self._adopted:
                return
            try:
                async with asyncio.timeout(ADOPT_S):
                    found = await driver.adopt()
            except TimeoutError:
                raise _too_slow(driver, "list its sandboxes", ADOPT_S) from None
            alive = frozenset(await self._sessions.alive([sandbox.session_id for sandbox in found]))
            for sandbox in found:
                placed = Placed(driver, sandbox, survived=True)
                if sandbox.session_id in alive:
                    self._taken.add(sandbox.session_id)
                    self._survivors.setdefault(sandbox.session_id, []).append(placed)
                    self._survived(sandbox.session_id)
                else:
                    self._remove_beside(placed)
            self._adopted.add(driver.name)

    def _remove_beside(self, placed: Placed) -> None:
        _ = self._spawn(partial(self._until_gone, placed), f"remove {placed.sandbox.id}")

    async def _until_gone(self, placed: Placed) -> None:
        for attempt in count():
            try:
                return await placed.driver.destroy(placed.sandbox.id)
            except (SandboxError, OSError) as error:
                pause = DESTROY_AGAIN_S[min(attempt, len(DESTROY_AGAIN_S) - 1)]
                log.warning("sandbox %s is not gone yet, trying again in %.0f s: %r", placed.sandbox.id, pause, error)
                await asyncio.sleep(pause)


def _too_slow(driver: Driver, what: str, limit_s: float) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"{driver.name} did not {what} within {limit_s:.0f} s.",
        fix="see what the engine is busy with, then try again; `galley doctor` tests it.",
    )
