"""A store that refuses in the middle of a turn: nothing is lost, nothing is run twice, and the turn goes on."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from galley_server.brain.brain import Brain
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import Reply, say
from galley_server.demo.script import Script
from galley_server.demo.transcript import ToolUse
from galley_server.errors import Unavailable
from galley_server.hands.port import ToolCall, ToolOutcome
from galley_server.log.log import Log
from galley_server.log.row import Draft, Row

from tests.integration.test_brain_session import Kitchen, kitchen, outcome

pytestmark = pytest.mark.anyio


@dataclass
class FullDisk:
    """The store of a kitchen, which refuses the first append that holds a row of this type."""

    made: Kitchen
    refuses: str
    refused: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made.store, name)

    async def append(self, session_id: str, drafts: Sequence[Draft], **rules: Any) -> list[Row]:
        if not self.refused and any(draft.type == self.refuses for draft in drafts):
            self.refused += 1
            raise Unavailable("the disk is full")
        return await self.made.store.append(session_id, drafts, **rules)


BATCH = Reply(tuple(ToolUse("read", {"file_path": f"/workspace/{number}"}) for number in range(3)))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "refuses",
    ["span.model_request_start", "internal.assistant", "internal.dispatch", "agent.tool_result", "session.status_idle"],
)
async def test_a_turn_goes_on_where_the_store_refused(refuses: str, warm: bool) -> None:
    first = asyncio.Event()

    async def work(call: ToolCall) -> ToolOutcome:
        # The others are under way when the result of one is refused.
        if str(call.input["file_path"]).endswith("/0"):
            first.set()
        else:
            await first.wait()
            await asyncio.sleep(0)
        return outcome("read")

    # An answer that could not be kept is asked for again.
    lost = refuses == "internal.assistant" or (warm and refuses == "internal.dispatch")
    script = Script(*([BATCH, BATCH] if lost else [BATCH]), say("Done."))
    async with serve_scripted(script) as url, kitchen(url, work=work) as made:
        made.hands.warm = warm
        disk = FullDisk(made, refuses)
        async with Log.open(disk) as log, Brain.open(replace(made.workplace, log=log)) as brain:
            await made.say(brain, "read them")
            await made.until("session.status_idle")
            assert disk.refused == 1
        assert len(made.hands.runs) == len(set(made.hands.runs)) == 3
        results = [body["tool_use_id"] for body in await made.bodies("agent.tool_result")]
        assert sorted(map(str, results)) == sorted(made.hands.runs)
        assert "session.error" not in await made.shown()
        assert await made.is_intact()
