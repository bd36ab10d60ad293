"""What the benches of tool calls share: log, brain and hands as the server has them, a model that answers at once."""

import argparse
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker
from galley_sandbox.port import Driver
from galley_server.brain.brain import Brain
from galley_server.brain.drafts import event_draft, internal_draft
from galley_server.brain.model import Answer, ModelRequest, Progress
from galley_server.brain.prompt import FileContents
from galley_server.brain.runner import Workplace
from galley_server.hands.nowhere import Nowhere
from galley_server.hands.sandboxes import SandboxHands
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.log import Log
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries
from galley_server.wire import events as ev
from galley_server.wire.agent import AgentToolset, AlwaysAllow, ModelConfig, SessionAgent, ToolDefault
from galley_server.wire.base import JSON
from galley_server.wire.content import TextBlock

AGENT = SessionAgent(
    id="agent_1",
    version=1,
    name="bench",
    description=None,
    model=ModelConfig(id="m"),
    system=None,
    tools=(AgentToolset(default_config=ToolDefault(enabled=True, permission_policy=AlwaysAllow()), configs=()),),
    mcp_servers=(),
)


class ObedientModel:
    """Calls bash with whatever the user said, and ends the turn when the result is there."""

    async def answer(self, request: ModelRequest, progress: Callable[[Progress], None]) -> Answer:
        block = _last_block(request.messages)
        if block["type"] == "tool_result":
            return Answer(({"type": "text", "text": "Done."},), "end_turn", ev.ModelUsage())
        call: dict[str, JSON] = {"type": "tool_use", "id": f"toolu_{new_id('sevt')}", "name": "bash"}
        return Answer((call | {"input": {"command": block["text"]}},), "tool_use", ev.ModelUsage())


def _last_block(messages: Iterable[Mapping[str, JSON]]) -> Mapping[str, JSON]:
    content = [*messages][-1]["content"]
    assert isinstance(content, list)
    block = content[-1]
    assert isinstance(block, dict)
    return block


class NoFiles:
    async def contents(self, file_ids: Iterable[str]) -> FileContents:
        return {}

    async def content(self, file_id: str) -> AsyncIterator[bytes]:
        yield b""


class Everyone:
    async def alive(self, session_ids: Collection[str]) -> Collection[str]:
        return session_ids


@dataclass(frozen=True, slots=True)
class Kitchen:
    log: Log
    brain: Brain
    hands: SandboxHands
    driver: Driver

    async def session(self) -> str:
        """A new session with its sandbox running."""
        session_id = new_id("sesn")
        created = internal.SessionCreated(agent=AGENT, environment_id="env_1", thread_id="sthr_1")
        await self.log.append(session_id, [internal_draft(created)], expected=0)
        await self.hands.incarnation(session_id, [])
        return session_id

    async def sandbox_id(self, session_id: str) -> str:
        return next(sandbox.id for sandbox in await self.driver.adopt() if sandbox.session_id == session_id)

    async def call(self, session_id: str, command: str) -> float:
        """Have the agent run one command. Returns the milliseconds from the call in the log to its result there."""
        message = ev.UserMessage(id=new_id("sevt"), content=(TextBlock(text=command),))
        (sent,) = await self.log.append(session_id, [event_draft(message)])
        self.brain.wake(session_id)
        began = took = 0.0
        async for row in self.log.follow(session_id, after=sent.seq):
            if row.type == "agent.tool_use":
                began = time.perf_counter()
            elif row.type == "agent.tool_result":
                took = (time.perf_counter() - began) * 1000
            elif row.type == "session.status_idle":
                break
        return took


@asynccontextmanager
async def open_kitchen(driver_name: str) -> AsyncIterator[Kitchen]:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        driver = new_driver(driver_name, folder)
        async with (
            Database.open(folder / "galley.db") as database,
            SqliteStore.open(database, ChainKey(bytes(32)), SessionSummaries()) as store,
            Log.open(store) as log,
            SandboxHands.open([driver], sessions=Everyone(), files=NoFiles()) as hands,
        ):
            try:
                async with Brain.open(Workplace(log, ObedientModel(), hands, Nowhere(), NoFiles())) as brain:
                    yield Kitchen(log, brain, hands, driver)
            finally:
                await hands.release_all()


def new_driver(name: str, folder: Path) -> Driver:
    home_id = new_id("req")
    return Docker(home_id) if name == "docker" else Bubblewrap(folder / "sandboxes", home_id)


def chosen_driver(doc: str) -> str:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", choices=["docker", "bubblewrap"], default="docker")
    chosen: str = parser.parse_args().driver
    return chosen
