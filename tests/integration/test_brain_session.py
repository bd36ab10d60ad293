"""The brain over a real store and a real Messages API wire; only the hands are in memory."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from galley_server.brain.brain import Brain
from galley_server.brain.decide import RetryPolicy
from galley_server.brain.drafts import event_draft, internal_draft
from galley_server.brain.model import MessagesModel
from galley_server.brain.prompt import FileContents
from galley_server.brain.runner import Workplace
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import Answer, ApiError, Drop, Hold, Reply, StreamError, call, say
from galley_server.demo.script import Script
from galley_server.demo.transcript import Request, Text, Thinking, ToolUse
from galley_server.hands.nowhere import Nowhere
from galley_server.hands.port import Mount, ToolCall, ToolDefinition, ToolOutcome
from galley_server.hands.tools import offered
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.log import Log
from galley_server.log.row import Row
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries, Summary
from galley_server.secret import Secret
from galley_server.settings import ModelSettings
from galley_server.wire import events as ev
from galley_server.wire.agent import (
    AgentToolset,
    AlwaysAllow,
    AlwaysAsk,
    CustomTool,
    InputSchema,
    ModelConfig,
    SandboxTool,
    SandboxToolConfig,
    SessionAgent,
    Tool,
    ToolDefault,
)
from galley_server.wire.content import TextBlock

pytestmark = pytest.mark.anyio
Work = Callable[[ToolCall], Awaitable[ToolOutcome]]


def outcome(text: str, *, is_error: bool = False) -> ToolOutcome:
    return ToolOutcome((TextBlock(text=text),), is_error)


async def echo(tool_call: ToolCall) -> ToolOutcome:
    return outcome(f"{tool_call.name} {json.dumps(dict(tool_call.input))}")


@dataclass
class MemoryHands:
    """Hands whose tools are functions. `runs` counts the effects, as a sandbox would have them."""

    work: Work = echo
    warm: bool = False
    gathered: asyncio.Event = field(default_factory=asyncio.Event)
    runs: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)

    def offered(self, agent: SessionAgent) -> tuple[ToolDefinition, ...]:
        return offered(agent)

    def refused(self, call: ToolCall) -> ToolOutcome | None:
        return None

    def prepare(self, session_id: str, mounts: Sequence[Mount]) -> None:
        pass

    async def incarnation(self, session_id: str, mounts: Sequence[Mount], *, last: str | None = None) -> str:
        return "incarnation_1"

    def at_hand(self, session_id: str, mounts: Sequence[Mount], *, last: str | None) -> str | None:
        return "incarnation_1" if self.warm else None

    async def execute(self, session_id: str, call: ToolCall, incarnation: str) -> ToolOutcome:
        self.runs.append(call.event_id)
        return await self.work(call)

    async def recover(self, session_id: str, call: ToolCall, incarnation: str) -> ToolOutcome:
        self.recovered.append(call.event_id)
        return outcome("recovered")

    async def acknowledge(self, session_id: str, call_id: str) -> None:
        self.acknowledged.append(call_id)

    async def interrupt(self, session_id: str, call_ids: Collection[str]) -> None:
        self.interrupted.extend(call_ids)

    def gather(self, session_id: str) -> None:
        self.gathered.set()

    async def release(self, session_id: str) -> None:
        pass


class NoFiles:
    async def contents(self, file_ids: Iterable[str]) -> FileContents:
        return {}


def agent(*tools: Tool, ask: Sequence[SandboxTool] = ()) -> SessionAgent:
    configs = tuple(
        SandboxToolConfig(type=name, name=name, enabled=True, permission_policy=AlwaysAsk()) for name in ask
    )
    allowed = ToolDefault(enabled=True, permission_policy=AlwaysAllow())
    return SessionAgent(
        id="agent_1",
        version=1,
        name="cook",
        description=None,
        model=ModelConfig(id="scripted-1"),
        system="You cook.",
        tools=(AgentToolset(default_config=allowed, configs=configs), *tools),
        mcp_servers=(),
    )


WEATHER = CustomTool(
    name="weather", description="The weather.", input_schema=InputSchema.model_validate({"type": "object"})
)


@dataclass
class Kitchen:
    """One session, and what a test wants to see of it."""

    log: Log
    store: SqliteStore[Summary]
    hands: MemoryHands
    workplace: Workplace
    session_id: str

    async def create(self, recipe: SessionAgent) -> None:
        created = internal.SessionCreated(agent=recipe, environment_id="env_1", thread_id="sthr_1")
        await self.log.append(self.session_id, [internal_draft(created)], expected=0)

    async def send(self, brain: Brain, *events: ev.ClientEvent) -> None:
        await self.log.append(self.session_id, [event_draft(event) for event in events])
        brain.wake(self.session_id)

    async def say(self, brain: Brain, text: str) -> None:
        await self.send(brain, ev.UserMessage(id=new_id("sevt"), content=(TextBlock(text=text),)))

    async def until(self, event_type: str, *, times: int = 1) -> Row:
        """Wait for the nth row of a type."""
        async with asyncio.timeout(5):
            async for row in self.log.follow(self.session_id):
                if row.type == event_type:
                    times -= 1
                    if times == 0:
                        return row
        raise AssertionError("the log ended")

    async def rows(self) -> list[Row]:
        return await self.log.read(self.session_id)

    async def shown(self) -> list[str]:
        return [row.type for row in await self.rows() if not row.type.startswith("internal.")]

    async def bodies(self, event_type: str) -> list[dict[str, object]]:
        return [json.loads(row.body) for row in await self.rows() if row.type == event_type]

    async def is_intact(self) -> bool:
        await self.store.verify(self.session_id)
        return True


@asynccontextmanager
async def kitchen(url: str, *, recipe: SessionAgent | None = None, work: Work = echo) -> AsyncIterator[Kitchen]:
    settings = ModelSettings(api_key=Secret("test-key"), base_url=url)
    async with (
        Database.open(":memory:") as database,
        SqliteStore.open(database, ChainKey(b"k" * 32), SessionSummaries()) as store,
        Log.open(store) as log,
        MessagesModel.open(settings) as model,
    ):
        hands = MemoryHands(work)
        retry = RetryPolicy(attempts=3, first_s=0.01, longest_s=0.02)
        workplace = Workplace(log, model, hands, Nowhere(), NoFiles(), retry=retry)
        made = Kitchen(log, store, hands, workplace, new_id("sesn"))
        await made.create(recipe or agent())
        yield made


@asynccontextmanager
async def played(
    *answers: Answer, recipe: SessionAgent | None = None, work: Work = echo
) -> AsyncIterator[tuple[Kitchen, Brain, Script]]:
    """A kitchen whose brain runs against this script. At the end every answer must have been asked for."""
    script = Script(*answers)
    async with serve_scripted(script) as url, kitchen(url, recipe=recipe, work=work) as made:
        async with Brain.open(made.workplace) as brain:
            yield made, brain, script
        assert await made.is_intact()
    assert script.left == 0


async def test_a_turn_is_logged_in_the_documented_order() -> None:
    async with played(say("Hello.")) as (made, brain, _):
        await made.say(brain, "Hi")
        await made.until("session.status_idle")
        assert await made.shown() == [
            "user.message",
            "session.status_running",
            "session.thread_status_running",
            "span.model_request_start",
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle",
        ]


async def test_a_tool_call_runs_once_and_its_result_reaches_the_model() -> None:
    async with played(call("bash", command="ls"), say("Done.")) as (made, brain, script):
        await made.say(brain, "List the files")
        await made.until("session.status_idle")
        assert len(made.hands.runs) == 1
        assert made.hands.acknowledged == made.hands.runs
        async with asyncio.timeout(5):
            await made.hands.gathered.wait()
        answered = script.requests[1].steps[0][1]
        assert 'bash {"command": "ls"}' in str(answered)


async def test_the_dispatch_is_logged_before_the_call_is_sent() -> None:
    async with played(call("bash", command="ls"), say("Done.")) as (made, brain, _):
        await made.say(brain, "go")
        await made.until("session.status_idle")
        types = [row.type for row in await made.rows()]
        assert types.index("agent.tool_use") < types.index("internal.dispatch") < types.index("agent.tool_result")


async def test_a_call_that_nothing_holds_up_is_dispatched_as_it_is_logged() -> None:
    uses = (ToolUse("bash", {"command": "one"}), ToolUse("bash", {"command": "two"}))
    async with played(Reply(uses), say("Done.")) as (made, brain, _):
        made.hands.warm = True
        await made.say(brain, "go")
        await made.until("session.status_idle")
        rows = await made.rows()
        place = next(row.seq for row in rows if row.type == "agent.tool_use")
        assert [row.type for row in rows[place - 1 : place + 2]] == [
            "agent.tool_use",
            "internal.dispatch",
            "agent.tool_use",
        ]
        assert len(made.hands.runs) == 2
        assert made.hands.recovered == []


async def test_two_messages_sent_at_once_are_answered_together() -> None:
    async with played(say("Both.")) as (made, brain, script):
        texts = [TextBlock(text="one"), TextBlock(text="two")]
        await made.send(brain, *(ev.UserMessage(id=new_id("sevt"), content=(text,)) for text in texts))
        await made.until("session.status_idle")
        assert len(script.requests) == 1
        assert len(script.requests[0].messages) == 1


async def test_thousands_of_messages_sent_at_once_are_one_turn() -> None:
    async with played(say("All read.")) as (made, brain, script):
        for _ in range(2):
            texts = [TextBlock(text=str(number)) for number in range(1000)]
            await made.send(brain, *(ev.UserMessage(id=new_id("sevt"), content=(text,)) for text in texts))
        await made.until("session.status_idle")
        assert "session.error" not in await made.shown()
        assert sum(len(request.messages[0].content) for request in script.requests[:1]) == 2000


async def test_a_message_sent_during_a_turn_is_taken_at_the_next_request() -> None:
    held = Hold(at=1)
    async with played(Reply((Text("First."),), fault=held), say("Second.")) as (made, brain, script):
        await made.say(brain, "one")
        await held.reached.wait()
        await made.say(brain, "two")
        held.release.set()
        await made.until("session.status_idle")
        assert [message.role for message in script.requests[1].messages] == ["user", "assistant", "user"]
        assert (await made.shown()).count("session.status_running") == 1


async def test_previews_are_a_prefix_of_the_message_and_carry_its_id() -> None:
    async with played(Reply((Thinking("hm"), Text("A longer answer than one chunk holds.")))) as (made, brain, _):
        previews = made.log.previews(made.session_id)
        await made.say(brain, "go")
        message = await made.until("agent.message")
        first = [json.loads((await anext(previews)).body) for _ in range(3)]
        assert first[0]["event"]["type"] == "agent.thinking"
        assert first[1] == {"type": "event_start", "event": {"type": "agent.message", "id": message.id}}
        assert "A longer answer than one chunk holds.".startswith(first[2]["delta"]["content"]["text"])


async def test_thinking_goes_back_to_the_model_with_its_signature() -> None:
    first = Reply((Thinking("hm"), ToolUse("bash", {"command": "ls"})))
    async with played(first, say("Done.")) as (made, brain, _):
        # The scripted endpoint refuses thinking without the signature that it gave.
        await made.say(brain, "go")
        await made.until("session.status_idle")
        assert "agent.thinking" in await made.shown()


async def test_an_asked_call_runs_after_it_is_allowed() -> None:
    async with played(call("bash", command="rm x"), say("Gone."), recipe=agent(ask=["bash"])) as (made, brain, _):
        await made.say(brain, "clean up")
        await made.until("session.status_idle")
        use = await made.until("agent.tool_use")
        assert made.hands.runs == []
        await made.send(brain, ev.UserToolConfirmation(id=new_id("sevt"), tool_use_id=use.id, result="allow"))
        await made.until("session.status_idle", times=2)
        assert made.hands.runs == [use.id]


async def test_a_denied_call_never_runs_and_the_model_reads_why() -> None:
    async with played(call("bash", command="rm x"), say("Fine."), recipe=agent(ask=["bash"])) as (made, brain, script):
        await made.say(brain, "clean up")
        await made.until("session.status_idle")
        use = await made.until("agent.tool_use")
        denial = ev.UserToolConfirmation(id=new_id("sevt"), tool_use_id=use.id, result="deny", deny_message="too risky")
        await made.send(brain, denial)
        await made.until("session.status_idle", times=2)
        assert made.hands.runs == []
        assert "too risky" in str(script.requests[1].steps[0][1])


async def test_a_custom_call_is_answered_by_the_client() -> None:
    async with played(call("weather"), say("Sunny."), recipe=agent(WEATHER)) as (made, brain, script):
        await made.say(brain, "weather?")
        await made.until("session.status_idle")
        use = await made.until("agent.custom_tool_use")
        given = ev.UserCustomToolResult(
            id=new_id("sevt"), custom_tool_use_id=use.id, content=(TextBlock(text="sun, 30 degrees"),)
        )
        await made.send(brain, given)
        await made.until("session.status_idle", times=2)
        assert "30 degrees" in str(script.requests[1].steps[0][1])


async def test_an_unknown_tool_is_refused_and_the_model_goes_on() -> None:
    async with played(call("teleport"), say("Sorry.")) as (made, brain, _):
        await made.say(brain, "go")
        await made.until("session.status_idle")
        assert (await made.bodies("agent.tool_use"))[0]["evaluated_permission"] == "deny"
        assert (await made.bodies("agent.tool_result"))[0]["is_error"] is True


async def test_an_interrupt_stops_the_model_and_ends_the_turn() -> None:
    held = Hold(at="text")
    async with played(Reply((Text("a long story " * 50),), fault=held), say("Yes?")) as (made, brain, _):
        await made.say(brain, "tell me")
        await held.reached.wait()
        await made.send(brain, ev.UserInterrupt(id=new_id("sevt")))
        await made.until("session.status_idle")
        assert "agent.message" not in await made.shown()
        assert (await made.bodies("span.model_request_end"))[0]["is_error"] is True
        await made.say(brain, "hello?")
        await made.until("session.status_idle", times=2)


async def test_an_interrupt_stops_a_tool_and_answers_its_call() -> None:
    begun = asyncio.Event()

    async def forever(tool_call: ToolCall) -> ToolOutcome:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    answers = (call("bash", command="sleep 99"), say("I was stopped."))
    async with played(*answers, work=forever) as (made, brain, script):
        await made.say(brain, "wait")
        await begun.wait()
        message = ev.UserMessage(id=new_id("sevt"), content=(TextBlock(text="what happened?"),))
        await made.send(brain, ev.UserInterrupt(id=new_id("sevt")), message)
        await made.until("session.status_idle", times=2)
        assert made.hands.interrupted == made.hands.runs
        assert "interrupted before completion" in str(script.requests[1].body)
        assert (await made.bodies("session.status_idle"))[0]["stop_reason"] == {"type": "end_turn"}


@pytest.mark.parametrize(
    "fault",
    [
        ApiError(429, retry_after=0.01),
        ApiError(500),
        ApiError(529),
        Reply((Text("half an ans"),), fault=StreamError()),
        Reply((ToolUse("bash", {"command": "date"}),), fault=Drop(at="tool_use")),
    ],
    ids=["429", "500", "529", "overloaded", "dropped"],
)
async def test_a_passing_fault_is_retried_and_told(fault: Answer) -> None:
    async with played(fault, say("Hello.")) as (made, brain, _):
        await made.say(brain, "Hi")
        await made.until("session.status_idle")
        shown = await made.shown()
        assert shown.index("session.error") < shown.index("session.status_rescheduled") < shown.index("agent.message")
        (error,) = await made.bodies("session.error")
        assert "'retry_status': {'type': 'retrying'}" in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_final_answer_of_the_endpoint_is_an_error_and_no_retry(status: int) -> None:
    async with played(ApiError(status)) as (made, brain, script):
        await made.say(brain, "Hi")
        await made.until("session.status_idle")
        assert len(script.requests) == 1
        assert "session.status_rescheduled" not in await made.shown()
        (error,) = await made.bodies("session.error")
        assert "model_request_failed_error" in str(error)


async def test_exhausted_retries_flush_the_queue_and_leave_the_session_usable() -> None:
    reached, release = asyncio.Event(), asyncio.Event()
    requests: list[Request] = []

    async def overloaded_three_times(request: Request) -> Answer:
        requests.append(request)
        if len(requests) == 3:
            reached.set()
            await release.wait()
        return ApiError(529) if len(requests) <= 3 else say("Better now.")

    async with (
        serve_scripted(overloaded_three_times) as url,
        kitchen(url) as made,
        Brain.open(made.workplace) as brain,
    ):
        await made.say(brain, "one")
        await reached.wait()
        await made.say(brain, "never read")
        release.set()
        await made.until("session.status_idle")
        assert len(requests) == 3
        await made.say(brain, "three")
        await made.until("session.status_idle", times=2)
        assert "never read" not in str(requests[3].body)
        assert requests[3].asked == "one\nthree"


async def test_a_dead_turn_says_retries_exhausted() -> None:
    async with played(ApiError(529), ApiError(529), ApiError(529)) as (made, brain, _):
        await made.say(brain, "one")
        await made.until("session.status_idle")
        assert (await made.bodies("session.status_idle"))[0]["stop_reason"] == {"type": "retries_exhausted"}
        assert "exhausted" in str((await made.bodies("session.error"))[-1])


async def test_a_refusal_is_the_stop_reason_and_is_not_sent_again() -> None:
    refusal = Reply((Text("No."),), stop_reason="refusal")
    async with played(refusal, say("Sure.")) as (made, brain, script):
        await made.say(brain, "do harm")
        await made.until("session.status_idle")
        assert (await made.bodies("session.status_idle"))[0]["stop_reason"] == {"type": "refusal"}
        await made.say(brain, "help me cook")
        await made.until("session.status_idle", times=2)
        assert [message.role for message in script.requests[1].messages] == ["user"]


async def test_parallel_reads_run_side_by_side_and_a_write_waits_for_them() -> None:
    running: set[str] = set()
    seen: dict[str, set[str]] = {}
    both = asyncio.Barrier(2)

    async def watched(tool_call: ToolCall) -> ToolOutcome:
        running.add(tool_call.name)
        seen[tool_call.name] = set(running)
        if tool_call.name != "write":
            async with asyncio.timeout(5):
                await both.wait()
        running.discard(tool_call.name)
        return outcome("ok")

    uses = (
        ToolUse("read", {"file_path": "a"}),
        ToolUse("glob", {"pattern": "*"}),
        ToolUse("write", {"file_path": "b"}),
    )
    async with played(Reply(uses), say("Done."), work=watched) as (made, brain, _):
        await made.say(brain, "go")
        await made.until("session.status_idle")
        assert seen["write"] == {"write"}


async def test_each_turn_pays_only_for_what_is_new() -> None:
    async with played(call("bash", command="ls"), say("One."), say("Two.")) as (made, brain, _):
        await made.say(brain, "first " * 200)
        await made.until("session.status_idle")
        await made.say(brain, "second")
        await made.until("session.status_idle", times=2)
        usages = [body["model_usage"] for body in await made.bodies("span.model_request_end")]
        read = [usage["cache_read_input_tokens"] for usage in usages if isinstance(usage, dict)]
        assert read[0] == 0
        assert 0 < read[1] < read[2]


async def test_a_new_brain_closes_the_request_that_the_old_one_left_open() -> None:
    held = Hold(at="text")
    script = Script(Reply((Text("never finished"),), fault=held), say("Again."))
    async with serve_scripted(script) as url, kitchen(url) as made:
        async with Brain.open(made.workplace) as brain:
            await made.say(brain, "go")
            await held.reached.wait()
        async with Brain.open(made.workplace) as brain:
            assert await brain.wake_unsettled(made.store) == 1
            await made.until("session.status_idle")
        assert (await made.shown()).count("span.model_request_end") == 2
        assert (await made.shown()).count("agent.message") == 1


async def test_a_new_brain_recovers_a_dispatched_call_and_does_not_run_it_again() -> None:
    begun = asyncio.Event()

    async def forever(tool_call: ToolCall) -> ToolOutcome:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    script = Script(call("bash", command="make"), say("Done."))
    async with serve_scripted(script) as url, kitchen(url, work=forever) as made:
        async with Brain.open(made.workplace) as brain:
            await made.say(brain, "go")
            await begun.wait()
        async with Brain.open(made.workplace) as brain:
            brain.wake(made.session_id)
            await made.until("session.status_idle")
        assert made.hands.recovered == made.hands.runs
        assert len(made.hands.runs) == 1


async def test_a_fault_of_a_tool_driver_leaves_the_session_answerable() -> None:
    async def broken(tool_call: ToolCall) -> ToolOutcome:
        raise RuntimeError("a bug in a driver")

    again = [call("bash", command="x"), say("I see."), call("bash", command="x")]
    async with played(*again, work=broken) as (made, brain, script):
        await made.say(brain, "go")
        await made.until("session.status_idle")
        assert "unknown_error" in str(await made.bodies("session.error"))
        await made.say(brain, "and now?")
        await made.until("session.status_idle", times=2)
        assert "may have run" in str(script.requests[1].body)
        # A second fault soon after is told like the first.
        await made.say(brain, "once more")
        await made.until("session.status_idle", times=3)
        assert (await made.shown()).count("session.error") == 2


async def test_a_message_that_was_acknowledged_just_before_a_crash_is_answered() -> None:
    script = Script(say("Hello."))
    async with serve_scripted(script) as url, kitchen(url) as made:
        message = ev.UserMessage(id=new_id("sevt"), content=(TextBlock(text="Hi"),))
        await made.log.append(made.session_id, [event_draft(message)])
        async with Brain.open(made.workplace) as brain:
            assert await brain.wake_unsettled(made.store) == 1
            await made.until("session.status_idle")
        async with Brain.open(made.workplace) as brain:
            assert await brain.wake_unsettled(made.store) == 0
