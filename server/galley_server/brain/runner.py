"""The runner of one session: carries out what `decide` says and appends what happened. It judges nothing itself.

It can be killed at any instant: whatever the next runner must know is in the log before it has an effect.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, assert_never

from galley_sandbox.errors import SandboxError

from galley_server.brain import drafts
from galley_server.brain.answer import EventIds, answer_drafts, called_ids
from galley_server.brain.decide import (
    CallModel,
    CloseRequest,
    FindReach,
    GoIdle,
    Interrupt,
    Refuse,
    Rest,
    RetryPolicy,
    RunTools,
    Wait,
    decide,
)
from galley_server.brain.lease import Lease
from galley_server.brain.model import Answer, Model, ModelFailed, Progress, TextDelta, ThinkingBegun, ToolBegun
from galley_server.brain.preview import Previews
from galley_server.brain.prompt import FileContents, attached_files, build_request
from galley_server.errors import AppendConflict, LeaseLost, NotFound, Unavailable
from galley_server.hands.access import Access, access_of
from galley_server.hands.mcp import definitions as mcp_definitions
from galley_server.hands.mcp import schema_of
from galley_server.hands.order import waits
from galley_server.hands.permission import Denied, Governed, rule
from galley_server.hands.port import Hands, Mount, ToolCall, ToolOutcome, ToolServers
from galley_server.hands.results import interrupted
from galley_server.ids import new_id
from galley_server.log import internal
from galley_server.log.log import Log
from galley_server.log.row import Draft
from galley_server.log.state import INTERRUPTED, Call, add_active
from galley_server.wire import events as ev
from galley_server.wire.agent import SessionAgent
from galley_server.wire.content import TextBlock
from galley_server.wire.usage import SessionUsage

logger = logging.getLogger(__name__)

_STORE_RETRY_S: Final = 1.0
_INTERRUPT_S: Final = 5.0
_CRASHED: Final = TextBlock(text="interrupted, may have run: the server failed while this call was open.")


class AttachedFiles(Protocol):
    """The contents of files that messages refer to."""

    async def contents(self, file_ids: Iterable[str]) -> FileContents:
        """Return what can be shown to a model; files that are gone are missing from the answer."""
        ...


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every runner works with. `linger_s`: how long one that rests stays, so that the next turn finds it warm."""

    log: Log
    model: Model
    hands: Hands
    servers: ToolServers
    files: AttachedFiles
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_rounds: int | None = 500
    linger_s: float = 10.0


class Runner:
    """Runs from `wake` until the session has had nothing to do for a while."""

    def __init__(self, session_id: str, workplace: Workplace, *, on_rest: Callable[[str], None]) -> None:
        self._session_id = session_id
        self._at = workplace
        self._on_rest = on_rest
        self._woken = False
        self._crashed = False
        # Calls whose dispatch this very runner logged with them: they are known not to have been sent.
        self._unsent: set[str] = set()

    def wake(self) -> None:
        self._woken = True

    async def run(self) -> None:
        while True:
            again = False
            try:
                async with Lease.take(self._at.log, self._session_id) as lease:
                    await self._acknowledge_again(lease)
                    await self._live(lease)
            except* (LeaseLost, NotFound):
                self._on_rest(self._session_id)
            except* Unavailable as group:
                # Nothing was acknowledged. What a tool did meanwhile, its hand remembers.
                logger.warning("%s: the store is unavailable, trying again: %s", self._session_id, group.exceptions[0])
                again = True
            except* Exception:
                # The task boundary: one session's fault must not end the others.
                logger.exception("%s: the runner failed", self._session_id)
                # Once per turn: a fault that comes back before the session rests would be told for ever.
                again = not self._crashed and await self._report_crash()
                self._crashed = True
                if not again:
                    self._on_rest(self._session_id)
            if not again:
                return
            await asyncio.sleep(_STORE_RETRY_S)

    async def _acknowledge_again(self, lease: Lease) -> None:
        """A server that died in this turn may have logged results and not told the hand, which keeps them till then."""
        if lease.state.status != "running":
            return
        for call in lease.state.latest_calls():
            if call.result is not None and call.incarnation is not None:
                await self._at.hands.acknowledge(self._session_id, call.event_id)

    async def _live(self, lease: Lease) -> None:
        while True:
            step = decide(lease.state, now=datetime.now(UTC), max_rounds=self._at.max_rounds)
            match step:
                case Rest():
                    self._crashed = False
                    if not await lease.news(self._at.linger_s) and await self._may_leave(lease):
                        return
                case Wait(until=until):
                    await lease.news(max(0.0, (until - datetime.now(UTC)).total_seconds()))
                case _:
                    await self._perform(lease, step)

    async def _may_leave(self, lease: Lease) -> bool:
        """Whether nothing came in meanwhile. From then on a `wake` starts another runner."""
        self._woken = False
        if not await lease.is_current() or self._woken:
            return False
        self._on_rest(self._session_id)
        return True

    async def _perform(
        self, lease: Lease, step: FindReach | CallModel | RunTools | Refuse | CloseRequest | Interrupt | GoIdle
    ) -> None:
        agent = lease.state.agent
        assert agent is not None, "decide rests while a session has no agent"
        try:
            match step:
                case FindReach():
                    await self._find_reach(lease, agent)
                case CallModel(take=take):
                    await self._call_model(lease, agent, take)
                case RunTools(calls=calls):
                    await self._run_tools(lease, agent, calls)
                case Refuse(calls=calls):
                    results = [_result_draft(call, _refusal(agent, call)) for call in calls]
                    await lease.append([*self._resumed(lease, agent), *results])
                case CloseRequest(request_id=request_id):
                    await lease.append([drafts.request_end(request_id, ev.ModelUsage(), is_error=True)])
                case Interrupt(ends_turn=ends_turn):
                    await self._interrupt(lease, agent, ends_turn=ends_turn)
                case GoIdle():
                    await self._go_idle(lease, agent, step)
                case _:
                    assert_never(step)
        except AppendConflict:
            return  # something arrived that may change the decision: it is folded in by now

    async def _find_reach(self, lease: Lease, agent: SessionAgent) -> None:
        opening = self._resumed(lease, agent)
        if opening:
            await lease.append(opening)
        reach = await lease.interruptible(self._at.servers.reach(self._session_id, _access(lease, agent)))
        if reach is not None:
            await lease.append(drafts.reached(lease.state, reach))

    async def _call_model(self, lease: Lease, agent: SessionAgent, take: Sequence[str]) -> None:
        state = lease.state
        ids = EventIds(request=new_id("sevt"), message=new_id("sevt"), thinking=new_id("sevt"))
        start = drafts.event_draft(ev.ModelRequestStart(id=ids.request))
        await lease.append([*drafts.processed(take), *self._resumed(lease, agent), start])
        outcome = await lease.interruptible(self._ask(lease, agent, ids))
        match outcome:
            case None:
                return  # interrupted: the next decision closes the request
            case Answer():
                taken = called_ids(state.transcript)
                await lease.append(
                    answer_drafts(
                        outcome,
                        agent,
                        ids,
                        listed=state.mcp,
                        taken=taken,
                        starts=lambda call: self._start(lease, call),
                    )
                )
            case ModelFailed():
                await lease.append(self._failure(lease, agent, ids.request, outcome))

    def _start(self, lease: Lease, call: ToolCall) -> internal.Dispatch | None:
        """Where the call is sent as soon as it is logged, None if there is something to do before."""
        incarnation: str | None = None
        if call.server is None:
            if self._at.hands.refused(call) is not None:
                return None
            incarnation = self._at.hands.at_hand(self._session_id, _mounts(lease), last=lease.state.incarnation)
            if incarnation is None:
                return None
        self._unsent.add(call.event_id)
        return internal.Dispatch(tool_use_id=call.event_id, incarnation=incarnation)

    async def _ask(self, lease: Lease, agent: SessionAgent, ids: EventIds) -> Answer | ModelFailed:
        files = await self._at.files.contents(attached_files(lease.state.transcript))
        tools = (*self._at.hands.offered(agent), *mcp_definitions(agent, lease.state.mcp))
        request = build_request(lease.state, agent, tools, files)
        previews = Previews(self._at.log, self._session_id, ids)
        mounts = _mounts(lease)

        def progress(step: Progress) -> None:
            match step:
                case TextDelta(index=index, text=text):
                    previews.text(index, text)
                case ThinkingBegun():
                    previews.thinking()
                case ToolBegun(name=name):
                    # A name of an MCP server's tool needs no sandbox, and without what was listed it is no tool at all.
                    if isinstance(rule(agent, name), Governed):
                        self._at.hands.prepare(self._session_id, mounts)

        try:
            return await self._at.model.answer(request, progress)
        except ModelFailed as failure:
            return failure

    def _failure(self, lease: Lease, agent: SessionAgent, request_id: str, failure: ModelFailed) -> list[Draft]:
        attempt = 1 if lease.state.retry is None else lease.state.retry.attempt + 1
        again = failure.retryable and attempt < self._at.retry.attempts
        status = ev.RetryStatus(type="retrying" if again else "exhausted")
        rows = [
            drafts.request_end(request_id, ev.ModelUsage(), is_error=True),
            drafts.session_error(ev.PlainError(type=failure.type, message=failure.message, retry_status=status)),
        ]
        if not again:
            return [*rows, drafts.internal_draft(internal.TurnFailed())]
        wait = self._at.retry.wait(attempt, asked=failure.retry_after, jitter=random.random())
        retry = internal.RetryAt(attempt=attempt, not_before=datetime.now(UTC) + wait)
        return [*rows, *drafts.rescheduled(lease.state, agent), drafts.internal_draft(retry)]

    async def _run_tools(self, lease: Lease, agent: SessionAgent, calls: Sequence[Call]) -> None:
        opening = self._resumed(lease, agent)
        if opening:
            await lease.append(opening)
        ended = [asyncio.Event() for _ in calls]
        async with asyncio.TaskGroup() as tasks:
            for index, needed in enumerate(waits([call.lane for call in calls])):
                before = [ended[i] for i in needed]
                tasks.create_task(self._run_in_turn(lease, agent, calls[index], before, ended[index]))

    async def _run_in_turn(
        self, lease: Lease, agent: SessionAgent, call: Call, before: Sequence[asyncio.Event], ended: asyncio.Event
    ) -> None:
        for event in before:
            await event.wait()
        here = call.server is None
        outcome = await (self._run_tool(lease, call) if here else self._run_mcp_tool(lease, agent, call))
        if outcome is not None:
            await lease.append([_result_draft(call, outcome)])
            if here:
                await self._at.hands.acknowledge(self._session_id, call.event_id)
        ended.set()

    async def _run_mcp_tool(self, lease: Lease, agent: SessionAgent, call: Call) -> ToolOutcome | None:
        """Bring a call to its outcome, or to None if an interrupt came first. It is sent at most once."""
        if call.dispatched and call.event_id not in self._unsent:
            return interrupted(f"it had been sent to the MCP server {call.server} when this server stopped")
        self._unsent.discard(call.event_id)
        if not call.dispatched:
            await lease.append([drafts.internal_draft(internal.Dispatch(tool_use_id=call.event_id))])
        tool_call = ToolCall(call.event_id, call.name, call.input, server=call.server)
        schema = schema_of(lease.state.mcp, call.server or "", call.name)
        return await lease.interruptible(
            self._at.servers.call(self._session_id, _access(lease, agent), tool_call, schema)
        )

    async def _run_tool(self, lease: Lease, call: Call) -> ToolOutcome | None:
        """Bring a call in the sandbox to its outcome, or to None if an interrupt came first."""
        hands, tool_call = self._at.hands, ToolCall(call.event_id, call.name, call.input)
        if call.incarnation is not None and call.event_id in self._unsent:
            self._unsent.discard(call.event_id)
            work = hands.execute(self._session_id, tool_call, call.incarnation)
        elif call.incarnation is not None:
            work = hands.recover(self._session_id, tool_call, call.incarnation)
        else:
            refused = hands.refused(tool_call)
            if refused is not None:
                return refused
            incarnation = await lease.interruptible(self._incarnation(lease))
            if not isinstance(incarnation, str):
                return incarnation
            await lease.append(
                [drafts.internal_draft(internal.Dispatch(tool_use_id=call.event_id, incarnation=incarnation))]
            )
            work = hands.execute(self._session_id, tool_call, incarnation)
        return await lease.interruptible(work)

    async def _incarnation(self, lease: Lease) -> str | ToolOutcome:
        try:
            return await self._at.hands.incarnation(self._session_id, _mounts(lease), last=lease.state.incarnation)
        except SandboxError as error:
            return ToolOutcome((TextBlock(text=str(error)),), is_error=True)

    async def _interrupt(self, lease: Lease, agent: SessionAgent, *, ends_turn: bool) -> None:
        state = lease.state
        sent = [call.event_id for call in state.open_calls() if call.incarnation is not None]
        if sent:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERRUPT_S):
                    await self._at.hands.interrupt(self._session_id, sent)
        rows = [*drafts.processed([*state.interrupts, *state.confirmations]), *_closing(lease, INTERRUPTED)]
        if ends_turn:
            rows += drafts.idle(state, agent, self._usage(lease), ev.EndTurn())
        await lease.append(rows, expected=state.seq)
        for call_id in sent:
            await self._at.hands.acknowledge(self._session_id, call_id)

    async def _go_idle(self, lease: Lease, agent: SessionAgent, step: GoIdle) -> None:
        state = lease.state
        rows = [*drafts.processed(step.flush, dropped=True), *drafts.processed(state.confirmations)]
        if step.error is not None:
            rows.append(drafts.session_error(step.error))
        rows += drafts.idle(state, agent, self._usage(lease), step.stop_reason, step.stop_details)
        await lease.append(rows, expected=state.seq)
        if state.incarnation is not None and not isinstance(step.stop_reason, ev.RequiresAction):
            self._at.hands.gather(self._session_id)

    def _resumed(self, lease: Lease, agent: SessionAgent) -> list[Draft]:
        """What comes before any work: confirmations count as processed, and the session runs."""
        return [*drafts.processed(lease.state.confirmations), *drafts.running(lease.state, agent)]

    def _usage(self, lease: Lease) -> SessionUsage:
        since = lease.state.running_since
        ran = timedelta() if since is None else max(timedelta(), datetime.now(UTC) - since)
        return add_active(lease.state.usage, ran)

    async def _report_crash(self) -> bool:
        """Leave the session idle and answerable after a fault of ours. False if even that cannot be done."""
        error = ev.PlainError(
            type="unknown_error",
            message="The server failed while it ran this session; its own log says how.",
            retry_status=ev.RetryStatus(type="exhausted"),
        )
        reported = True
        try:
            async with Lease.take(self._at.log, self._session_id) as lease:
                rows = [*_closing(lease, _CRASHED), drafts.session_error(error)]
                await lease.append([*rows, drafts.internal_draft(internal.TurnFailed())], expected=lease.state.seq)
        except* Exception:
            logger.exception("%s: its failure could not be logged", self._session_id)
            reported = False
        return reported


def _access(lease: Lease, agent: SessionAgent) -> Access:
    return access_of(agent, lease.state.networking, lease.state.vault_ids)


def _mounts(lease: Lease) -> tuple[Mount, ...]:
    return tuple(Mount(resource.file_id, resource.mount_path) for resource in lease.state.resources)


def _closing(lease: Lease, text: TextBlock) -> list[Draft]:
    """The rows that close an open request and every open call, so that the transcript can be sent again."""
    rows: list[Draft] = []
    if lease.state.open_request is not None:
        rows.append(drafts.request_end(lease.state.open_request, ev.ModelUsage(), is_error=True))
    for call in lease.state.open_calls():
        if call.custom:
            rows.append(drafts.internal_draft(internal.CallClosed(custom_tool_use_id=call.event_id)))
        else:
            rows.append(_result_draft(call, ToolOutcome((text,), is_error=True)))
    return rows


def _refusal(agent: SessionAgent, call: Call) -> ToolOutcome:
    if call.confirmation is not None:
        reason = call.confirmation.deny_message
        text = f"The user rejected this tool call: {reason}" if reason else "The user rejected this tool call."
    elif call.server is not None:
        text = f"The tool {call.name!r} of the MCP server {call.server!r} is not enabled for this agent."
    else:
        ruling = rule(agent, call.name)
        text = ruling.reason if isinstance(ruling, Denied) else f"The tool {call.name!r} was not enabled."
    return ToolOutcome((TextBlock(text=text),), is_error=True)


def _result_draft(call: Call, outcome: ToolOutcome) -> Draft:
    return drafts.tool_result(call.event_id, call.server, outcome)
