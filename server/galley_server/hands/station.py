"""One session's sandbox: opened once however many ask, reached again after a drop, replaced after a loss.

The states are what `_held` and `_line` say: no sandbox, a sandbox without a connection, a sandbox with one. One task
holds the connection for as long as it is good; everybody else only uses the hand that this task opened.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from galley_sandbox.errors import (
    CallRefused,
    SandboxError,
    SandboxLost,
    SandboxUnavailable,
)

from galley_server.hands.line import LOST, Attempt, Held, Line, answer_within, connect
from galley_server.hands.mounts import put_missing
from galley_server.hands.outputs import keep_outputs
from galley_server.hands.port import FileSource, Mount, Outlets, OutputSink, ToolCall, ToolOutcome
from galley_server.hands.results import failed, from_sandbox, interrupted, not_run, with_notes
from galley_server.hands.supply import Spawn, Supply

log: Final = logging.getLogger(__name__)

MAX_DROPS: Final = 5
"""How often one call may lose its connection and ask again."""

QUIET_S: Final = 1.0
"""A connection silent for longer is tried before a dispatch is logged: a death between two turns then costs no call."""

PING_S: Final = 5.0
"""How long a hand may take over a question that needs no work."""

WATCH_S: Final = 60.0
"""How often a connection that nobody uses is tried."""

SETTLE_S: Final = 5.0
"""How long an interrupted call may take to end before it is given up."""

GONE: Final = "The sandbox of earlier calls is gone, with its files and processes. This is a fresh one."
OVER: Final = "The session is over."
USER: Final = "the user interrupted"


@dataclass(eq=False, slots=True)
class Running:
    """A call under way: its deadline, which an interrupt brings forward."""

    deadline: asyncio.Timeout
    sent: bool
    interrupted: bool = False

    def interrupt(self, at: float) -> None:
        if not self.interrupted and not self.deadline.expired():
            self.interrupted = True
            self.deadline.reschedule(at)


class Station:
    """Where the calls of one session are run."""

    def __init__(self, session_id: str, supply: Supply, files: FileSource, outlets: Outlets, spawn: Spawn) -> None:
        self._session_id = session_id
        self._supply = supply
        self._files = files
        self._outlets = outlets
        self._spawn = spawn
        self._held: Held | None = None
        self._line: Line | None = None
        self._attempt: Attempt | None = None
        self._holder: asyncio.Task[None] | None = None
        self._released = False
        self._closed = False
        self._mounting = asyncio.Lock()
        self._gathering = asyncio.Lock()
        self._dispatched_to: str | None = None
        self._announced: str | None = None
        self._notes: list[str] = []
        self._running: dict[str, Running] = {}
        self._durable: set[str] = set()

    async def prepare(self, mounts: Sequence[Mount], *, last: str | None = None) -> str:
        """Have a sandbox open with every file in place, and return its incarnation. Raises SandboxUnavailable."""
        lost: SandboxLost | None = None
        for _ in range(3):
            line = await self._open(last)
            try:
                await self._ping(line)
                if not line.held.mounted.issuperset(mounts):
                    async with self._mounting:
                        await put_missing(line, mounts, self._files, self._notes.append)
            except SandboxLost as error:
                lost = error
                line.fail(error)
            else:
                return line.incarnation
        raise SandboxUnavailable(
            f"The sandbox was lost while it was being prepared: {lost}.",
            fix="try again; `galley doctor` tests the sandbox.",
        )

    async def hold(self) -> None:
        """Connect to a sandbox that survived, before anybody calls: a hand that is left alone ends itself in time."""
        surviving = await self._supply.surviving()
        if surviving.get(self._session_id) == 1:  # of several, the log says which is the right one
            with suppress(SandboxLost):
                _ = await self._reach(None)

    async def incarnation(self, mounts: Sequence[Mount], *, last: str | None) -> str:
        """What the next dispatch is logged with. If files of earlier calls are gone, the next result says so."""
        incarnation = await self.prepare(mounts, last=last)
        before = last or self._dispatched_to
        if before not in (None, incarnation) and self._announced != incarnation:
            self._notes.append(GONE)
            self._announced = incarnation
        self._dispatched_to = incarnation
        return incarnation

    def at_hand(self, mounts: Sequence[Mount], *, last: str | None) -> str | None:
        """What `incarnation` would return without a question to anybody, None if it would have to ask."""
        line = self._line
        if line is None or line.bad or asyncio.get_running_loop().time() - line.heard >= QUIET_S:
            return None
        if not line.held.mounted.issuperset(mounts) or line.incarnation != (last or self._dispatched_to):
            return None
        return line.incarnation

    async def run(self, call: ToolCall, incarnation: str, *, sent: bool, limit_s: float) -> ToolOutcome:
        """Bring a call to its outcome. `sent`: an earlier process may have sent it already."""
        running = Running(asyncio.timeout(limit_s), sent)
        try:
            async with running.deadline:
                self._running[call.event_id] = running
                return await self._run(call, incarnation, running)
        except TimeoutError:
            return self._out_of_time(running, limit_s)
        finally:
            self._running.pop(call.event_id, None)

    async def interrupt(self, call_ids: Collection[str]) -> None:
        """Kill calls. One that does not end soon after is given up, so that no hand can keep anybody waiting."""
        soon = asyncio.get_running_loop().time() + SETTLE_S
        for call_id in call_ids:
            if (running := self._running.get(call_id)) is not None:
                running.interrupt(soon if running.sent else 0)
        try:
            async with asyncio.timeout(SETTLE_S):
                # After a restart nothing is connected yet, and still the calls may be running.
                line = await self._reach(None)
                for call_id in call_ids:
                    await line.hand.cancel(call_id)
        except (SandboxError, TimeoutError) as error:
            log.info("interrupt of %s in %s: %r", ", ".join(call_ids), self._session_id, error)

    def acknowledge(self, call_id: str) -> None:
        """Let the hand forget a result, soon: the holder of the connection tells it."""
        self._durable.add(call_id)
        if self._line is not None:
            self._line.stir.set()

    async def gather(self, sink: OutputSink) -> None:
        """Keep the outputs, if there is a sandbox to take them from. One gathering at a time."""
        async with self._gathering:
            if self._line is not None and not self._line.bad:
                try:
                    await keep_outputs(self._line, self._session_id, sink)
                except SandboxLost as error:
                    log.info("outputs of %s: %s", self._session_id, error)

    async def release(self) -> None:
        """Give the sandbox up and see it gone."""
        self._released = True
        for running in self._running.values():
            running.interrupt(0)
        if self._attempt is not None:
            self._attempt.fail(SandboxUnavailable(OVER, fix="create a new session."))
        if self._holder is not None:
            # Provisioning that is cancelled leaves nothing behind: every driver promises it.
            self._holder.cancel()
            await asyncio.wait([self._holder])
        placed = self._held.placed if self._held else await self._supply.survivor(self._session_id)
        if placed is not None:
            await self._supply.remove_for_good(placed)
            self._held = None

    def close(self) -> None:
        """Begin nothing new: the server is going, the sandbox stays for the next one."""
        self._closed = True

    # One call.

    async def _run(self, call: ToolCall, incarnation: str, running: Running) -> ToolOutcome:
        for _ in range(MAX_DROPS):
            try:
                line = await self._reach(incarnation)
            except SandboxLost as error:
                return interrupted(str(error)) if running.sent else not_run(str(error))
            running.sent = True
            # Sorted, because the hand takes an id asked for again with other bytes for another call.
            given = dict(sorted(call.input.items()))
            try:
                result = await line.hand.call(call.event_id, call.name, given)
            except SandboxLost as error:
                line.fail(error)
            except CallRefused as refusal:
                return failed(f"{call.name}: {refusal}")
            else:
                line.heard = asyncio.get_running_loop().time()
                notes, self._notes = self._notes, []
                return with_notes(from_sandbox(result), notes)
        return interrupted("the connection to the sandbox dropped again and again")

    def _out_of_time(self, running: Running, limit_s: float) -> ToolOutcome:
        if running.interrupted:
            return interrupted(USER) if running.sent else not_run(USER)
        if not running.sent:
            return not_run(f"the sandbox could not be reached within {limit_s:.0f} s")
        # The hand keeps time itself, so one that is this late is stuck: the next call finds out on a new connection.
        if self._line is not None:
            self._line.drop()
        return interrupted(f"the sandbox did not answer within {limit_s:.0f} s")

    # Opening and holding the connection.

    async def _ping(self, line: Line) -> None:
        now = asyncio.get_running_loop().time()
        if now - line.heard < QUIET_S:
            return
        with suppress(CallRefused):
            async with answer_within(PING_S):
                _ = await line.hand.query("ping")
        line.heard = now

    async def _open(self, wanted: str | None) -> Line:
        """The open line, or a new one, to a new sandbox if need be. Raises SandboxUnavailable."""
        while True:
            if self._line is not None and not self._line.bad:
                return self._line
            attempt = self._attempt or self._begin(Attempt(may_provision=True, wanted=wanted))
            await attempt.ended.wait()
            if attempt.line is not None:
                return attempt.line
            if attempt.may_provision:
                raise _unavailable(attempt.error or SandboxLost(LOST))

    async def _reach(self, incarnation: str | None) -> Line:
        """A line to this very incarnation, or to whichever the session has. Raises SandboxLost."""
        line = self._line
        if line is None or line.bad:
            attempt = self._attempt or self._begin(Attempt(may_provision=False, wanted=incarnation))
            await attempt.ended.wait()
            if attempt.line is None:
                raise SandboxLost(str(attempt.error or LOST))
            line = attempt.line
        if incarnation not in (None, line.incarnation):
            raise SandboxLost(LOST)
        return line

    def _begin(self, attempt: Attempt) -> Attempt:
        if self._released:
            attempt.fail(SandboxUnavailable(OVER, fix="create a new session."))
        elif not self._closed:
            # Closed, an attempt never ends: whoever waits for it is about to be cancelled, and must not be told that a
            # call was lost which the sandbox, left in place, goes on with.
            if self._line is not None:
                self._line.drop()  # broken, and whoever holds it may not have noticed
            self._attempt = attempt
            self._holder = self._spawn(partial(self._hold, attempt), f"sandbox of {self._session_id}")
        return attempt

    async def _hold(self, attempt: Attempt) -> None:
        """The task behind an attempt and the line it opens. Ends when the line is dropped."""
        try:
            async with self._connected(attempt) as line:
                self._line, self._attempt = line, None
                attempt.succeed(line)
                await self._attend(line)
        except SandboxError as error:
            attempt.fail(error)
            if attempt.line is not None and isinstance(error, SandboxLost):
                attempt.line.fail(error)
                self._return_to(attempt.line)
        finally:
            if self._attempt is attempt:
                self._attempt = None
            if not self._closed and not attempt.ended.is_set():
                attempt.fail(SandboxUnavailable("The sandbox failed unexpectedly.", fix="see the server's log."))
            if attempt.line is not None:
                attempt.line.drop()

    async def _attend(self, line: Line) -> None:
        """Acknowledge results, and now and then see that the line is good: returns when it is known not to be."""
        while not line.dropped:
            await self._tell_durable(line)
            try:
                async with asyncio.timeout(WATCH_S):
                    await line.stir.wait()
            except TimeoutError:
                await self._ping(line)
            line.stir.clear()

    def _return_to(self, line: Line) -> None:
        """The line broke while nobody used it (a laptop slept, say): a hand that is left alone ends itself in time."""
        if self._line is line and self._attempt is None and not self._released:
            _ = self._begin(Attempt(may_provision=False, wanted=line.incarnation))

    async def _tell_durable(self, line: Line) -> None:
        for call_id in list(self._durable):
            # Refused while the call still runs, as one that was just interrupted may: it is told again next time.
            with suppress(CallRefused):
                async with answer_within(PING_S):
                    await line.hand.acknowledge(call_id)
                self._durable.discard(call_id)

    @asynccontextmanager
    async def _connected(self, attempt: Attempt) -> AsyncIterator[Line]:
        async with AsyncExitStack() as stack:
            held = await self._have(attempt)
            try:
                hand = await connect(held.placed, stack)
            except SandboxLost:
                held.lost = True
                if not attempt.may_provision:
                    raise
                held = await self._have(attempt)
                hand = await connect(held.placed, stack)
            # Before any call: a command must find its variables and ports there.
            note = await stack.enter_async_context(self._outlets.open(self._session_id, hand))
            if note is not None:
                self._notes.append(note)
            yield Line(held, hand, heard=asyncio.get_running_loop().time())

    async def _have(self, attempt: Attempt) -> Held:
        """The session's sandbox: the one it has, the one that survived, or (if the attempt may) a new one."""
        if self._held is not None and self._held.lost and attempt.may_provision:
            # First make sure that it is gone: a session never has two.
            await self._supply.remove(self._held.placed)
            self._held = None
        if self._held is None:
            placed = await self._supply.survivor(self._session_id, wanted=attempt.wanted)
            if placed is None and attempt.may_provision:
                placed = await self._supply.provision(self._session_id)
                self._durable.clear()  # of calls that this one never saw
            if placed is not None:
                self._held = Held(placed)
        if self._held is None or self._held.lost:
            raise SandboxLost(LOST)
        return self._held


def _unavailable(error: SandboxError) -> SandboxUnavailable:
    """A fresh error for each that waited: one exception object must not be raised in several tasks."""
    if isinstance(error, SandboxUnavailable):
        return SandboxUnavailable(error.message, fix=error.fix)
    return SandboxUnavailable(f"No sandbox could be had: {error}.", fix="try again; `galley doctor` tests the sandbox.")
