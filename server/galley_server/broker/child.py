"""The vault proxy as a child of this server: started with it, started again when it dies, gone when it is.

It listens on Unix sockets only. Its standard input is a pipe that this process holds: however this process dies, the
pipe ends, and so does the child.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Self

from galley_server.broker.place import Sockets
from galley_server.errors import Unavailable, ungrouped

_READY_S: Final = 30.0
_AGAIN_S: Final = (0.2, 1.0, 5.0, 15.0)
_FAREWELL_S: Final = 2.0
_CONFIG_ERROR: Final = 2
"""The exit status that says a setting is wrong: starting it again would not help."""
_LONGEST_LINE: Final = 64 * 1024

logger: Final = logging.getLogger(__name__)


class Child:
    """One `galley-vault-proxy serve`. Made by `open`."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = tuple(command)
        self._environ = dict(environ)
        self._begun = asyncio.Event()
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        """Set while there is something to say: it is ready, or will not be."""
        self._last_words = ""
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, sockets: Sockets, environ: Mapping[str, str]) -> AsyncIterator[Self]:
        """`begin` starts it, in the background. `environ` is all that it gets of the environment."""
        child = cls(serve_command(sockets), environ)
        with ungrouped():
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(child._keep(), name="vault-proxy")
                try:
                    yield child
                finally:
                    keeping.cancel()

    def begin(self, url: str) -> None:
        """Start it, once this server can be reached at `url`, to which the proxy has browsers sent."""
        self._environ.setdefault("GALLEY_PROXY_URL", url)
        self._begun.set()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def ready(self, patience_s: float) -> None:
        """Return once it accepts requests. Raises Unavailable, which says why it does not."""
        try:
            async with asyncio.timeout(patience_s):
                await self._settled.wait()
        except TimeoutError:
            raise Unavailable("the vault proxy is still starting; try again") from None
        if not self._ready.is_set():
            raise Unavailable(f"the vault proxy does not run: {self._last_words or 'see the log of this server'}")

    async def _keep(self) -> None:
        await self._begun.wait()
        failures = 0
        while True:
            status, served = await self._run_once()
            failures = 0 if served else failures + 1
            if status == _CONFIG_ERROR and not served:
                logger.error("the vault proxy refuses to start: %s", self._last_words)
                self._settled.set()
                return
            pause = _AGAIN_S[min(failures, len(_AGAIN_S) - 1)]
            logger.warning("the vault proxy ended with status %s; starting it again in %.1f s", status, pause)
            if failures >= len(_AGAIN_S):
                self._settled.set()  # who waits is told; it goes on being tried
            await asyncio.sleep(pause)

    async def _run_once(self) -> tuple[int, bool]:
        """Run it until it ends. Returns its status, and whether it ever was ready."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            # A Ctrl-C in the terminal is for this server, which then ends the child in its turn.
            start_new_session=True,
        )
        self._process = process
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read_words(process), name="vault-proxy-stderr")
                served = await self._await_ready(process)
                status = await process.wait()
                await asyncio.wait([reading], timeout=1)
                reading.cancel()
            return status, served
        finally:
            if self._ready.is_set():
                self._ready.clear()
                self._settled.clear()
            self._process = None
            await _end(process)

    async def _await_ready(self, process: asyncio.subprocess.Process) -> bool:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_S):
                line = await process.stdout.readline()
        except TimeoutError:
            logger.error("the vault proxy was not ready within %.0f s", _READY_S)
            process.kill()
            return False
        if not line.startswith(b"galley-vault-proxy ready "):
            return False
        self._ready.set()
        self._settled.set()
        return True

    async def _read_words(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what it logs: it is written so that it holds no secret."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue  # longer than any line of a log; what was read of it is gone
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_words = text.removeprefix("galley-vault-proxy: ")
            sys.stderr.write(f"{text}\n")


def serve_command(sockets: Sockets) -> list[str]:
    words = ["--uds", str(sockets.api), "--egress-uds", str(sockets.egress), "--no-tcp", "--lifeline"]
    return [sys.executable, "-m", "galley_vault_proxy", "serve", *words]


async def _end(process: asyncio.subprocess.Process) -> None:
    """See it gone, in bounded time."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_FAREWELL_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
