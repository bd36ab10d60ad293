"""The hands of this release: every built-in tool call runs in its session's own sandbox."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, Self

from galley_sandbox.errors import SandboxError
from galley_sandbox.port import Driver, Limits

from galley_server.hands import inputs, tools
from galley_server.hands.nowhere import Nowhere
from galley_server.hands.port import (
    FileSource,
    LiveSessions,
    Mount,
    Outlets,
    OutputSink,
    ToolCall,
    ToolDefinition,
    ToolOutcome,
)
from galley_server.hands.results import failed, interrupted
from galley_server.hands.station import Station
from galley_server.hands.supply import Supply
from galley_server.wire.agent import SessionAgent

log: Final = logging.getLogger(__name__)

BASH_TIMEOUT_S: Final = 120.0
GRACE_S: Final = 20.0
"""The hand keeps every limit of time itself; this much later, it is taken for stuck."""

RELEASE_S: Final = 10.0
"""How long `release` waits to see the sandbox gone; after that, removing it goes on in the background."""


class SandboxHands:
    """One sandbox per session, made at its first call, kept between turns, and left in place when the server ends.

    `drivers` in order of preference; `former` only for what they still hold. At most `most` sandboxes live at once;
    `at_once` are being made at once.
    """

    def __init__(
        self,
        drivers: Sequence[Driver],
        tasks: asyncio.TaskGroup,
        *,
        sessions: LiveSessions,
        files: FileSource,
        outlets: Outlets,
        outputs: OutputSink | None,
        former: Sequence[Driver],
        limits: Limits,
        most: int,
        at_once: int,
    ) -> None:
        self._group = tasks
        self._tasks: set[asyncio.Task[None]] = set()
        self._files = files
        self._outlets = outlets
        self._outputs = outputs
        self._limits = limits
        self._supply = Supply(
            drivers,
            sessions,
            self._spawn,
            former=former,
            survived=self._survived,
            limits=limits,
            most=most,
            at_once=at_once,
        )
        self._stations: dict[str, Station] = {}
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        drivers: Sequence[Driver],
        *,
        sessions: LiveSessions,
        files: FileSource,
        outlets: Outlets | None = None,
        outputs: OutputSink | None = None,
        former: Sequence[Driver] = (),
        limits: Limits | None = None,
        most: int = 200,
        at_once: int = 8,
    ) -> AsyncIterator[Self]:
        """Adopt what survived and probe the drivers, both in the background, and close without touching a sandbox.

        The drivers are closed with it. Close it after whoever calls it has stopped: what runs in the sandboxes then
        goes on for the next server.
        """
        async with AsyncExitStack() as stack:
            for driver in (*drivers, *former):
                stack.push_async_callback(driver.close)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            hands = cls(
                drivers,
                tasks,
                sessions=sessions,
                files=files,
                outlets=outlets or Nowhere(),
                outputs=outputs,
                former=former,
                limits=limits or Limits(),
                most=most,
                at_once=at_once,
            )
            stack.callback(hands._close)
            _ = hands._spawn(hands._settle, "adopt and probe")
            yield hands

    def offered(self, agent: SessionAgent) -> tuple[ToolDefinition, ...]:
        return tools.offered(agent)

    def refused(self, call: ToolCall) -> ToolOutcome | None:
        if call.name not in tools.SANDBOX_TOOLS:
            return failed(f"There is no tool named {call.name!r}.")
        complaint = inputs.complaint(call.name, call.input)
        return None if complaint is None else failed(complaint)

    def prepare(self, session_id: str, mounts: Sequence[Mount]) -> None:
        if not self._closed:
            _ = self._spawn(partial(_prepare, self._station(session_id), mounts), f"prepare {session_id}")

    async def incarnation(self, session_id: str, mounts: Sequence[Mount], *, last: str | None = None) -> str:
        return await self._station(session_id).incarnation(mounts, last=last)

    def at_hand(self, session_id: str, mounts: Sequence[Mount], *, last: str | None) -> str | None:
        return self._station(session_id).at_hand(mounts, last=last)

    async def execute(self, session_id: str, call: ToolCall, incarnation: str) -> ToolOutcome:
        return await self._run(session_id, call, incarnation, sent=False)

    async def recover(self, session_id: str, call: ToolCall, incarnation: str) -> ToolOutcome:
        # The hand answers a known id with the running call or its kept result, so asking is the same as running.
        return await self._run(session_id, call, incarnation, sent=True)

    async def acknowledge(self, session_id: str, call_id: str) -> None:
        self._station(session_id).acknowledge(call_id)

    async def interrupt(self, session_id: str, call_ids: Collection[str]) -> None:
        await self._station(session_id).interrupt(call_ids)

    def gather(self, session_id: str) -> None:
        station = self._stations.get(session_id)
        if self._closed or station is None or self._outputs is None:
            return
        _ = self._spawn(partial(station.gather, self._outputs), f"gather {session_id}")

    async def release(self, session_id: str) -> None:
        if self._closed:
            return  # The next server finds a sandbox whose session is over, and removes it.
        station = self._station(session_id)
        task = self._spawn(partial(self._release, session_id, station), f"release {session_id}")
        await asyncio.wait([task], timeout=RELEASE_S)

    async def release_all(self) -> None:
        """Give up every sandbox of this home: for a home that goes away with its server."""
        for session_id in {*self._stations, *await self._supply.surviving()}:
            await self.release(session_id)

    async def _run(self, session_id: str, call: ToolCall, incarnation: str, *, sent: bool) -> ToolOutcome:
        if (refused := self.refused(call)) is not None:
            return refused
        try:
            return await self._station(session_id).run(call, incarnation, sent=sent, limit_s=self._limit_s(call))
        except Exception:
            # The boundary of a call: whatever nobody foresaw, the model gets an answer and the session goes on.
            log.exception("tool call %s failed", call.event_id)
            return interrupted("the server failed unexpectedly; its log says how")

    def _limit_s(self, call: ToolCall) -> float:
        asked = call.input.get("timeout_ms")
        if call.name != "bash":
            return self._limits.wall_s + GRACE_S
        wanted = asked / 1000 if isinstance(asked, int) and asked > 0 else BASH_TIMEOUT_S
        return min(wanted, self._limits.wall_s) + GRACE_S

    def _station(self, session_id: str) -> Station:
        if (station := self._stations.get(session_id)) is None:
            station = Station(session_id, self._supply, self._files, self._outlets, self._spawn)
            self._stations[session_id] = station
        return station

    async def _release(self, session_id: str, station: Station) -> None:
        try:
            # First what leads out: it must not outlive the session by the time that a sandbox takes to go.
            await self._outlets.end(session_id)
            await station.release()
        finally:
            if self._stations.get(session_id) is station:
                del self._stations[session_id]

    def _survived(self, session_id: str) -> None:
        _ = self._spawn(self._station(session_id).hold, f"hold {session_id}")

    async def _settle(self) -> None:
        await self._supply.adopt()
        try:
            _ = await self._supply.choose()
        except SandboxError as error:
            log.warning("tool calls will fail: %s", error)

    def _spawn(self, work: Callable[[], Coroutine[None, None, None]], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(_guarded(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _close(self) -> None:
        self._closed = True
        for station in self._stations.values():
            station.close()
        for task in self._tasks:
            task.cancel()


async def _prepare(station: Station, mounts: Sequence[Mount]) -> None:
    try:
        _ = await station.prepare(mounts)
    except SandboxError as error:
        # The call that follows tries again, and then it is told.
        log.info("no sandbox yet: %s", error)


async def _guarded(work: Callable[[], Coroutine[None, None, None]], name: str) -> None:
    """The task boundary: what nobody foresaw is logged with its traceback and takes no other session down."""
    try:
        await work()
    except Exception:
        log.exception("%s failed", name)
