"""Sandboxes with bubblewrap: Linux without an engine. A hand here outlives the server that started it."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from galley_sandbox import process
from galley_sandbox.bubblewrap import cgroups, start
from galley_sandbox.bubblewrap import state as states
from galley_sandbox.bubblewrap.host import Host, inspect, limits_report
from galley_sandbox.bubblewrap.state import State
from galley_sandbox.client import HandClient
from galley_sandbox.errors import SandboxError, SandboxLost, SandboxUnavailable
from galley_sandbox.port import Limits, LimitStatus, Probe, Sandbox, Spec
from galley_sandbox.process import ProcessName
from galley_sandbox.stream import open_unix_stream
from galley_sandbox.threads import to_end

logger = logging.getLogger(__name__)

START_WITHIN_S = 30.0
END_WITHIN_S = 10.0
IDLE_EXIT_S = 900.0
_POLL_S = 0.01
_FIX = (
    "unprivileged user namespaces must be allowed on this machine "
    "(on Ubuntu: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0); `galley doctor` tells more"
)


class BubblewrapSandbox:
    def __init__(self, folder: Path, state: State, name: ProcessName) -> None:
        self._folder = folder
        self._state = state
        self._process = name

    @property
    def id(self) -> str:
        return self._state.id

    @property
    def session_id(self) -> str:
        return self._state.session_id

    @property
    def incarnation(self) -> str:
        return self._state.incarnation

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[HandClient]:
        if not await asyncio.to_thread(process.is_alive, self._process):
            raise SandboxLost(f"The hand of sandbox {self.id} has ended.")
        async with _connect(self._folder, self._state) as hand:
            yield hand


class Bubblewrap:
    """The driver. `root` is a folder of this home alone, made if it is not there."""

    def __init__(self, root: Path, home_id: str, *, idle_exit_s: float = IDLE_EXIT_S) -> None:
        self._root = root
        self._home_id = home_id
        self._idle_exit_s = idle_exit_s
        self._host: Host | None = None
        self._inspecting = asyncio.Lock()

    @property
    def name(self) -> str:
        return "bubblewrap"

    async def probe(self) -> Probe:
        host = await self._inspected()
        sandbox = await self.provision(Spec(session_id="probe", limits=Limits(disk_bytes=16 * 1024 * 1024)))
        try:
            async with sandbox.connect() as hand:
                result = await hand.call("probe", "bash", {"command": "echo $((6*7))"}, timeout_s=START_WITHIN_S)
        finally:
            await self.destroy(sandbox.id)
        if result.is_error or result.text != "42":
            raise SandboxUnavailable(
                f"bubblewrap started, but its first command failed: {result.text[:200]!r}.",
                fix="install bash and python3 (3.8 or newer) with the system's package manager",
            )
        version = ".".join(str(part) for part in host.version)
        return Probe(driver=self.name, detail=f"bubblewrap {version} as {'root' if host.is_root else 'a plain user'}")

    async def provision(self, spec: Spec) -> BubblewrapSandbox:
        host = await self._inspected()
        state = State(
            id=f"sbx_{secrets.token_hex(12)}",
            home_id=self._home_id,
            session_id=spec.session_id,
            incarnation=f"inc_{secrets.token_hex(16)}",
            limits=spec.limits,
            process=None,
        )
        try:
            async with asyncio.timeout(START_WITHIN_S):
                return await self._start(host, state)
        except (TimeoutError, OSError, SandboxError) as e:
            said = await asyncio.to_thread(states.log_tail, self._root / state.id)
            await self.destroy(state.id)
            raise SandboxUnavailable(f"bubblewrap could not start a sandbox: {said or e}", fix=_FIX) from e
        except asyncio.CancelledError:
            await asyncio.shield(self.destroy(state.id))
            raise

    async def adopt(self) -> list[Sandbox]:
        await self._inspected()
        async with asyncio.TaskGroup() as tasks:
            checked = [
                tasks.create_task(self._revive_or_remove(folder, state))
                for folder, state in await asyncio.to_thread(self._states)
                if state is None or state.home_id == self._home_id
            ]
        return [sandbox for task in checked if (sandbox := task.result()) is not None]

    async def destroy(self, sandbox_id: str) -> None:
        folder = self._root / sandbox_id
        state = await asyncio.to_thread(states.read, folder)
        if state is not None and state.home_id != self._home_id:
            return
        if state is not None and state.process is not None:
            await _kill(state.process, sandbox_id)
        elif state is not None:
            await _end_half_started(folder, state)
        await self._leave_groups(sandbox_id)
        await asyncio.to_thread(shutil.rmtree, folder, True)

    async def limits_report(self) -> list[LimitStatus]:
        return limits_report(await self._inspected())

    async def close(self) -> None:
        """Nothing is held open."""

    async def _inspected(self) -> Host:
        async with self._inspecting:
            if self._host is None:
                self._host = await asyncio.to_thread(inspect)
                await asyncio.to_thread(self._root.mkdir, 0o700, True, True)
            return self._host

    async def _start(self, host: Host, state: State) -> BubblewrapSandbox:
        folder = self._root / state.id
        with ExitStack() as opened:
            prepared = await to_end(start.prepare, host, self._root, state, self._idle_exit_s, opened)
            pid = await start.run(prepared)
        name = await asyncio.to_thread(process.name_of, pid)
        if name is None:
            raise SandboxLost("the hand ended at once")
        running = replace(state, process=name)
        await asyncio.to_thread(states.write, folder, running)
        sandbox = BubblewrapSandbox(folder, running, name)
        async with sandbox.connect():
            return sandbox

    def _states(self) -> list[tuple[Path, State | None]]:
        return [(folder, states.read(folder)) for folder in sorted(self._root.glob("sbx_*"))]

    async def _revive_or_remove(self, folder: Path, state: State | None) -> Sandbox | None:
        if state is not None and state.process is not None:
            sandbox = BubblewrapSandbox(folder, state, state.process)
            try:
                async with sandbox.connect():
                    return sandbox
            except SandboxLost as e:
                logger.warning("sandbox %s is not adopted: %s", state.id, e)
            except SandboxError as e:
                # Not known to be dead, so neither used nor removed; the next restart looks again.
                logger.warning("sandbox %s is left alone: %s", state.id, e)
                return None
        try:
            await self.destroy(folder.name)
        except SandboxError as e:
            logger.warning("sandbox %s could not be removed: %s", folder.name, e)
        return None

    async def _leave_groups(self, sandbox_id: str) -> None:
        """Once the hand is dead its whole process name space is; the groups empty as the kernel gets to it."""
        hierarchy = (await self._inspected()).hierarchy
        if hierarchy is None:
            return
        for _ in range(int(END_WITHIN_S / _POLL_S)):
            if await asyncio.to_thread(cgroups.remove, hierarchy, sandbox_id):
                return
            await asyncio.sleep(_POLL_S)
        raise SandboxError(f"Processes of sandbox {sandbox_id} do not end.")


async def _end_half_started(folder: Path, state: State) -> None:
    """Whoever started it ended before writing down which process it is.

    The start script may still be at work, and bubblewrap, whose parent could not report to anybody, may wait for ever
    with the hand's socket open. All of them were given the incarnation.
    """
    while found := await asyncio.to_thread(process.bearing, state.incarnation.encode()):
        for one in found:
            await _kill(one, state.id)
    # The hand of a plain user lets nobody read its environment, but it answers.
    with suppress(SandboxError):
        async with _connect(folder, state) as hand:
            await hand.end()


async def _kill(one: ProcessName, sandbox_id: str) -> None:
    if not await process.kill(one, within_s=END_WITHIN_S):
        raise SandboxError(f"Process {one.pid} of sandbox {sandbox_id} did not die.")


@asynccontextmanager
async def _connect(folder: Path, state: State) -> AsyncIterator[HandClient]:
    async with AsyncExitStack() as stack:
        try:
            with start.ShortPath(folder) as short:
                stream = await stack.enter_async_context(open_unix_stream(f"{short}/{states.SOCKET}"))
        except OSError as e:
            raise SandboxLost(f"The hand of sandbox {state.id} does not answer: {e.strerror}.") from e
        yield await stack.enter_async_context(
            HandClient.open(stream, incarnation=state.incarnation, wall_s=state.limits.wall_s)
        )
