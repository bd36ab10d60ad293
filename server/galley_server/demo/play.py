"""The demo: a server on a temporary home, driven through `galley mcp` as an MCP client would, shown as it happens."""

import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final

from galley_server.demo.analyst import Analyst
from galley_server.demo.messages import serve_scripted
from galley_server.demo.stdio_client import Batch, Galley, connected
from galley_server.demo.timeline import Timeline, text_of
from galley_server.errors import ConfigError, GalleyError
from galley_server.gist import JSON
from galley_server.log.chain import ChainKey
from galley_server.log.verify import reading, verify
from galley_server.settings import Settings
from galley_server.state import StateFiles

SAMPLE: Final = "sales_data.csv"
SERVE: Final = (sys.executable, "-P", "-m", "galley_server", "serve", "--port", "0")
READY_S: Final = 60.0
STOP_S: Final = 10.0
TURN_S: Final = 900.0
# Over MCP a file is an argument of a tool; larger ones go over HTTP, which the demo does without.
LARGEST_CSV: Final = 2_000_000

_SHOWN: Final = frozenset(
    {
        "user.message",
        "agent.message",
        "agent.thinking",
        "agent.tool_use",
        "agent.tool_result",
        "session.error",
        "session.status_running",
        "session.status_rescheduled",
        "session.status_idle",
        "session.status_terminated",
    }
)
_SANDBOX_SAID: Final = re.compile(r"sandboxes are made by (.*)$", re.MULTILINE)


class DemoFailed(GalleyError):
    """The demo could not be played. The message says why."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is played. `csv` None: the sample that comes with Galley."""

    csv: Path | None
    live: bool
    environ: Mapping[str, str]


@dataclass(slots=True)
class Turn:
    """What is seen of the session's one turn, event by event."""

    answer: str = ""
    calls: int = 0
    returned: int = 0
    last: Batch | None = field(default=None)

    def see(self, event: Mapping[str, JSON]) -> None:
        kind = event.get("type")
        if kind == "agent.message":
            self.answer = text_of(event)
        elif kind == "agent.tool_use":
            self.calls += 1
        elif kind == "agent.tool_result" and not event.get("is_error"):
            self.returned += 1

    @property
    def succeeded(self) -> bool:
        return self.returned > 0 and self.last is not None and self.last.stop_reason == "end_turn"


async def play(stage: Stage, timeline: Timeline) -> int:
    """Play one session and return the exit status: 0 if tools really ran and the agent came to its end."""
    name, text = _read_csv(stage.csv)
    async with AsyncExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="galley-demo-", ignore_cleanup_errors=True)
        home = StateFiles(Path(stack.enter_context(folder)))
        model = await _model(stack, stage)
        environ = {**stage.environ, **model, **await _sandbox(stage.environ), "GALLEY_HOME": str(home.home)}
        timeline.say("Starting a Galley server on a temporary home ...")
        url = await stack.enter_async_context(_server(home, environ))
        galley = await stack.enter_async_context(connected(environ))
        timeline.say(f"It listens on {url}. This client speaks MCP with it, through `galley mcp` on stdio.")
        file_id = await galley.upload(name, text)
        timeline.say(f"Uploaded {name}: {len(text.splitlines()):,} lines.\n")
        session_id, after = await galley.create_session(title=f"Demo: {name}", file_id=file_id)
        turn = Turn()
        began = time.monotonic()
        timeline.start()
        await galley.send(session_id, f"Analyze {name} and find the top 5 products by revenue")
        await _follow(galley, session_id, after, turn, timeline)
        timeline.heading("\nThe answer")
        timeline.say(turn.answer or "(none)")
        timeline.heading("\nWhat was really run")
        took = time.monotonic() - began
        for fact in [
            *_facts(home, session_id, turn),
            await _model_fact(galley, session_id, environ, stage),
            _time(took),
        ]:
            timeline.say(f"  {fact}")
        await galley.archive(session_id)
    return 0 if turn.succeeded else 1


async def _follow(galley: Galley, session_id: str, after: str, turn: Turn, timeline: Timeline) -> None:
    seen: set[str] = set()
    async with asyncio.timeout(TURN_S):
        async for batch in galley.follow(session_id, after):
            turn.last = batch
            for event in batch.events:
                turn.see(event)
                # A message comes twice, when it arrives and when it is taken up.
                if event.get("type") in _SHOWN and str(event["id"]) not in seen:
                    timeline.event(event)
                seen.add(str(event["id"]))


def _facts(home: StateFiles, session_id: str, turn: Turn) -> list[str]:
    said = _SANDBOX_SAID.search((home.home / "server.log").read_text(errors="replace"))
    with reading(home.database) as connection:
        proven = verify(connection, ChainKey.open(home.chain_key), session_id)
    return [
        f"sandbox  {said[1] if said else 'none could be started'}, without network: "
        f"{turn.calls} tool calls, {turn.returned} came back without an error",
        f"log      {proven.head.seq} rows, chain verified, head {str(proven.head)[:20]}...",
    ]


async def _model_fact(galley: Galley, session_id: str, environ: Mapping[str, str], stage: Stage) -> str:
    tokens_in, tokens_out = await galley.tokens(session_id)
    kind = "" if stage.live else ", a program of rules behind a real Messages API (--live takes yours)"
    return f"model    {Settings.from_env(environ).model.default}{kind}: {tokens_in:,} tokens in, {tokens_out:,} out"


def _time(seconds: float) -> str:
    return f"time     {seconds:.1f} s from the message to the answer"


def _read_csv(path: Path | None) -> tuple[str, str]:
    if path is None:
        return SAMPLE, (files("galley_server.demo") / SAMPLE).read_text()
    try:
        size = path.stat().st_size
        if size > LARGEST_CSV:
            raise ConfigError(f"{path} has {size:,} bytes; the demo takes up to {LARGEST_CSV:,}")
        return path.name, path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8") from None


async def _model(stack: AsyncExitStack, stage: Stage) -> dict[str, str]:
    """The settings of the model: a scripted one that runs here, or what was configured."""
    if not stage.live:
        url = await stack.enter_async_context(serve_scripted(Analyst()))
        return {"GALLEY_MODEL_BASE_URL": url, "GALLEY_MODEL_API_KEY": "demo", "GALLEY_MODEL": "scripted-1"}
    model = Settings.from_env(stage.environ).model
    if model.api_key is None and model.auth_token is None:
        raise ConfigError(
            "--live needs a model: set ANTHROPIC_API_KEY, or GALLEY_MODEL_API_KEY and GALLEY_MODEL_BASE_URL"
        )
    return {}


async def _sandbox(environ: Mapping[str, str]) -> dict[str, str]:
    """Bubblewrap where it works, unless another choice was made: Docker may first have to make an image."""
    bwrap = shutil.which("bwrap", path=environ.get("PATH"))
    if environ.get("GALLEY_SANDBOX", "").strip() or bwrap is None:
        return {}
    tried = await asyncio.create_subprocess_exec(
        bwrap, "--unshare-all", "--ro-bind", "/", "/", "true", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
    )
    return {"GALLEY_SANDBOX": "bubblewrap"} if await tried.wait() == 0 else {}


@asynccontextmanager
async def _server(home: StateFiles, environ: Mapping[str, str]) -> AsyncIterator[str]:
    """A server of its own process, as a person would start it. Yields its URL."""
    descriptor = os.open(home.home / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            *SERVE, stdin=DEVNULL, stdout=PIPE, stderr=descriptor, env=dict(environ)
        )
    finally:
        os.close(descriptor)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = (await process.stdout.readline()).decode().split()
        if line[:2] != ["galley", "ready"]:
            said = (home.home / "server.log").read_text(errors="replace").strip().splitlines()
            raise DemoFailed(f"the server did not start: {said[-1] if said else 'it said nothing'}")
        yield line[2]
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
