"""A server and a scripted model as processes of their own, for the benches that go through the HTTP face."""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

KEY = "bench-key-0123456789"
MODEL_KEY = "bench-model-key"


@dataclass(frozen=True)
class Served:
    url: str
    pid: int

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-api-key": KEY}


@asynccontextmanager
async def scripted_model(*words: str) -> AsyncIterator[str]:
    """The base URL of a model that echoes; `words` are the options of `galley_server.demo.messages`."""
    async with _started([sys.executable, "-m", "galley_server.demo.messages", *words], os.environ) as (_, url):
        yield url


@asynccontextmanager
async def served(model_url: str, *, program: Sequence[str] = ("-m", "galley_server", "serve")) -> AsyncIterator[Served]:
    """`galley serve` on a temporary home, or `program` in its place."""
    with tempfile.TemporaryDirectory(prefix="galley-bench-") as home:
        settings = {
            "GALLEY_HOME": home,
            "GALLEY_API_KEY": KEY,
            "GALLEY_MODEL_BASE_URL": model_url,
            "GALLEY_MODEL_API_KEY": MODEL_KEY,
            "GALLEY_SANDBOX": "bubblewrap",
            "GALLEY_LOG_LEVEL": "warning",
        }
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("GALLEY_", "ANTHROPIC_"))}
        command = [sys.executable, *program, "--port", "0"]
        async with _started(command, {**environ, **settings}, Path(__file__).parents[1]) as (process, url):
            yield Served(url, process.pid)


@asynccontextmanager
async def _started(
    command: Sequence[str], environ: Mapping[str, str], folder: Path | None = None
) -> AsyncIterator[tuple[Process, str]]:
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, env=dict(environ), cwd=folder)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield process, line.decode().split()[-1]
    finally:
        process.terminate()
        await process.wait()
