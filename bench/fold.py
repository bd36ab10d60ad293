"""Open and fold a session of 2,000 events (1 KB each) from SQLite, against parsing the same JSON and nothing else.

Target: at most 25 ms.
"""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from galley_server.brain.drafts import event_draft, internal_draft
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.row import Draft
from galley_server.log.sqlite import SqliteStore
from galley_server.log.state import fold
from galley_server.log.summary import SessionSummaries
from galley_server.wire import events as ev
from galley_server.wire.agent import ModelConfig, SessionAgent
from galley_server.wire.content import TextBlock

EVENTS = 2_000
TARGET_MS = 25
RUNS = 31


def session_rows() -> list[Draft]:
    """Turns as a session has them: a message, an answer with a call, its dispatch and result, an answer."""
    agent = SessionAgent(
        id="agent_1",
        version=1,
        name="bench",
        description=None,
        model=ModelConfig(id="m"),
        system=None,
        tools=(),
        mcp_servers=(),
    )
    rows = [internal_draft(internal.SessionCreated(agent=agent, environment_id="env_1", thread_id="sthr_1"))]
    text = TextBlock(text="x" * 900)
    while len(rows) < EVENTS:
        message, use, tool, request = (new_id("sevt") for _ in range(4))
        block = {"type": "tool_use", "id": f"toolu_{use}", "name": "bash", "input": {"command": "y" * 850}}
        rows += [
            event_draft(ev.UserMessage(id=message, content=(text,))),
            internal_draft(internal.Processed(event_id=message)),
            event_draft(ev.ModelRequestStart(id=request)),
            internal_draft(
                internal.Assistant(
                    request_id=request,
                    blocks=(block,),  # type: ignore[arg-type]
                    calls={f"toolu_{use}": use},
                    stop_reason="tool_use",
                )
            ),
            event_draft(ev.AgentToolUse(id=use, name="bash", input={"command": "y" * 850})),
            internal_draft(internal.Dispatch(tool_use_id=use, incarnation="i")),
            event_draft(ev.AgentToolResult(id=tool, tool_use_id=use, content=(text,))),
            event_draft(ev.AgentMessage(id=new_id("sevt"), content=(text,))),
        ]
    return rows[:EVENTS]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "galley.db"
        session_id = new_id("sesn")
        async with (
            Database.open(path) as database,
            SqliteStore.open(database, ChainKey(b"k" * 32), SessionSummaries()) as store,
        ):
            await store.append(session_id, session_rows(), expected=0)
            rows = await store.read(session_id)
            folds, parses = [], []
            for _ in range(RUNS):
                began = time.perf_counter()
                state = fold(await store.read(session_id))
                folds.append((time.perf_counter() - began) * 1000)
                began = time.perf_counter()
                for row in rows:
                    json.loads(row.body)
                parses.append((time.perf_counter() - began) * 1000)
            assert state.seq == EVENTS
    folded, parsed = statistics.median(folds), statistics.median(parses)
    print(f"open and fold {EVENTS} events: {folded:.1f} ms (target {TARGET_MS}); ", end="")
    print(f"json.loads of the same rows alone: {parsed:.1f} ms; ratio {folded / parsed:.2f}")
    if folded > TARGET_MS:
        raise SystemExit(1)


if __name__ == "__main__":
    asyncio.run(main())
