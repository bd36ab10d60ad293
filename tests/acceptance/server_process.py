"""`galley serve` as its own process, as a person starts it."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

GALLEY = (sys.executable, "-P", "-m", "galley_server")
READY_S = 30.0


def environment(home: Path, **settings: str) -> dict[str, str]:
    """The settings given and nothing of ours: no key, no endpoint, no home of whoever runs the tests."""
    mine = {
        name: value for name, value in os.environ.items() if not name.startswith(("GALLEY_", "ANTHROPIC_", "VAULT_"))
    }
    # Without a vault proxy unless the test is about it: one more process for each server costs the suite minutes.
    chosen = {"GALLEY_HOME": str(home), "GALLEY_SANDBOX": "bubblewrap", "GALLEY_BROKER": "off", **settings}
    return {**mine, **chosen}


@dataclass(frozen=True)
class Served:
    """A server that said it is ready."""

    process: Process
    url: str
    home: Path

    @property
    def key(self) -> str:
        return (self.home / "api_key").read_text().strip()

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-api-key": self.key}

    async def stop(self, number: int = signal.SIGTERM, *, within_s: float = 10.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    @property
    def errors(self) -> str:
        """What the server wrote on stderr so far."""
        return _errors(self.home).read_text()


def _errors(home: Path) -> Path:
    """Beside the home, not in it: nothing of a server's own is to be added there."""
    return home.with_name(f"{home.name}.stderr")


def open_errors(home: Path) -> BinaryIO:
    home.parent.mkdir(parents=True, exist_ok=True)
    return _errors(home).open("ab")


@asynccontextmanager
async def served(home: Path, *words: str, **settings: str) -> AsyncIterator[Served]:
    arguments = words or ("--port", "0")
    # A file and not a pipe: a pipe that nobody reads would stop a server that has much to say.
    with open_errors(home) as errors:
        process = await asyncio.create_subprocess_exec(
            *GALLEY, "serve", *arguments, env=environment(home, **settings), stdin=DEVNULL, stdout=PIPE, stderr=errors
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = (await process.stdout.readline()).decode()
        ready, _, url = line.strip().rpartition(" ")
        assert ready == "galley ready", f"it said {line!r} and {_errors(home).read_text()!r}"
        yield Served(process, url, home)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: Process) -> tuple[int, str]:
    """The exit status and the words of a process that is about to end."""
    async with asyncio.timeout(READY_S):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def refused(home: Path, *words: str, **settings: str) -> tuple[int, str]:
    """What `galley serve` says when it does not start."""
    process = await asyncio.create_subprocess_exec(
        *GALLEY, "serve", *words, env=environment(home, **settings), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    return await ended(process)
