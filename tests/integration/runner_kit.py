"""The credential broker's two programs as processes, beside a real proxy."""

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.integration.proxy_kit import KEY, Proxy, proxy

FOLDER: Final = Path(__file__).parents[2] / "deploy" / "credential-broker"


@dataclass(frozen=True)
class Broker:
    """A proxy on a port and on its two sockets, and a folder with what a runner of sandboxes has."""

    proxy: Proxy
    folder: Path

    @property
    def sockets(self) -> tuple[Path, Path]:
        return self.folder / "proxy.sock", self.folder / "egress.sock"

    @property
    def sandbox(self) -> Path:
        return self.folder / "sandbox"

    @property
    def greeting(self) -> Path:
        return self.folder / "greeting"

    def request(self, **more: Any) -> Path:
        path = self.folder / "request.json"
        path.write_text(json.dumps({"session_id": "sesn_1", "expires_in": 600, **more}))
        return path

    def token(self) -> str:
        return (self.sandbox / "token").read_text().strip()


@asynccontextmanager
async def broker(folder: Path, home: Path | None = None) -> AsyncIterator[Broker]:
    (folder / "sandbox").mkdir(exist_ok=True)
    (folder / "service_key").write_text(KEY)
    found = folder / "proxy.sock", folder / "egress.sock"
    environ = {"GALLEY_PROXY_ALLOW_NETS": "127.0.0.0/8"}
    words = ("--uds", str(found[0]), "--egress-uds", str(found[1]))
    async with proxy(home or folder / "home", *words, environ=environ) as running:
        yield Broker(running, folder)


class Keeper:
    """A running `grant.py`, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, pattern: str) -> str:
        """The next line that matches."""
        assert self._process.stderr is not None
        async with asyncio.timeout(30):
            while line := (await self._process.stderr.readline()).decode():
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"it ended and never said {pattern}")

    async def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode


@asynccontextmanager
async def keeping(at: Broker, request: Path, *words: str) -> AsyncIterator[Keeper]:
    """`grant.py`, which is ended hard if the test has not ended it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(FOLDER / "grant.py"), str(request), str(at.sandbox), "--broker", at.proxy.url),
        *("--key-file", str(at.folder / "service_key"), *words),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    try:
        yield Keeper(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def forwarding(*words: str | Path, waits_for: Sequence[Path]) -> AsyncIterator[asyncio.subprocess.Process]:
    """`forward.py`, listening."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(FOLDER / "forward.py"), *map(str, words), stdin=DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            for path in waits_for:
                await listening(path)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def listening(path: Path) -> None:
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            await asyncio.sleep(0.02)  # it says nowhere when it listens
            continue
        writer.close()
        return
