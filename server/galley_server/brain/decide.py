"""`decide(state) -> Step`: what a session does next, from its folded log alone. Pure: no I/O, the time is an argument.

No step is longer than one model request or one batch of tool calls. Permission policies, interrupts, retries, limits
and queued messages meet here and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from galley_server.hands.order import waits
from galley_server.log.state import AssistantTurn, Call, SessionState
from galley_server.wire import events as ev
from galley_server.wire.agent import McpToolset
from galley_server.wire.environment import Limited


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do before something new arrives."""


@dataclass(frozen=True, slots=True)
class FindReach:
    """Ask the MCP servers for their tools: what they answer is what the requests of this turn offer."""


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask the model, after taking these queued messages in."""

    take: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run these calls, each in its turn; calls that were sent before a crash are recovered, not run again."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer these calls without running them."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """The model is to be asked again, not before this time."""

    until: datetime


@dataclass(frozen=True, slots=True)
class CloseRequest:
    """A crash cut this model request off: nothing of its answer was kept."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Close what is open, and end the turn if one is."""

    ends_turn: bool


@dataclass(frozen=True, slots=True)
class GoIdle:
    """End the turn, or block it on the client. Carried out only if nothing has arrived meanwhile."""

    stop_reason: ev.StopReason
    stop_details: ev.StopDetails | None = None
    error: ev.PlainError | None = None
    flush: tuple[str, ...] = ()
    """Queued messages that the dead turn takes with it."""


Step: TypeAlias = Rest | FindReach | CallModel | RunTools | Refuse | Wait | CloseRequest | Interrupt | GoIdle


def decide(state: SessionState, *, now: datetime, max_rounds: int | None) -> Step:
    if state.status == "terminated" or state.agent is None:
        return Rest()
    open_calls = state.open_calls()
    # A turn that is blocked on the client is idle to look at, and not over.
    active = state.status != "idle" or isinstance(state.stop_reason, ev.RequiresAction)
    if state.interrupts:
        return Interrupt(ends_turn=active)
    if state.open_request is not None:
        return CloseRequest(state.open_request)
    if state.failed:
        return GoIdle(ev.RetriesExhausted(), flush=tuple(state.queue))
    if open_calls:
        return _next_for_calls(state, open_calls)
    if state.retry is not None and active and now < state.retry.not_before:
        return Wait(state.retry.not_before)
    owes = active and _owes_answer(state)
    if (state.queue or owes) and not state.mcp_listed and _reaches_out(state):
        return FindReach()
    if state.queue:
        return CallModel(take=tuple(state.queue))
    if owes:
        return _another_round(state, max_rounds)
    return _end_of_turn(state) if active else Rest()


def _next_for_calls(state: SessionState, open_calls: Sequence[Call]) -> Step:
    awaited = tuple(call.event_id for call in open_calls if call.awaits_client)
    if awaited and state.status == "idle":
        # Blocked before: nothing runs until all are answered, and each partial answer shows what is still missing.
        told = state.stop_reason.event_ids if isinstance(state.stop_reason, ev.RequiresAction) else ()
        return Rest() if told == awaited else GoIdle(ev.RequiresAction(event_ids=awaited))
    ready = _ready(open_calls)
    refused = tuple(call for call in ready if _denied(call))
    if refused:
        return Refuse(refused)
    if ready:
        return RunTools(tuple(ready))
    return GoIdle(ev.RequiresAction(event_ids=awaited))


def _ready(open_calls: Sequence[Call]) -> list[Call]:
    """Calls that wait neither for the client nor, however indirectly, behind a call that does."""
    held: set[int] = set()
    for index, needed in enumerate(waits([call.lane for call in open_calls])):
        if open_calls[index].awaits_client or not held.isdisjoint(needed):
            held.add(index)
    return [call for index, call in enumerate(open_calls) if index not in held]


def _denied(call: Call) -> bool:
    return call.permission == "deny" or (call.confirmation is not None and call.confirmation.result == "deny")


def _reaches_out(state: SessionState) -> bool:
    """Whether there is something to find out: servers to list, or credentials that the environment may shut off."""
    agent = state.agent
    servers = agent is not None and any(isinstance(tool, McpToolset) for tool in agent.tools)
    return servers or (bool(state.vault_ids) and isinstance(state.networking, Limited))


def _owes_answer(state: SessionState) -> bool:
    last = state.transcript[-1] if state.transcript else None
    if isinstance(last, AssistantTurn):
        return bool(last.calls) or last.stop_reason == "pause_turn"
    return last is not None


def _another_round(state: SessionState, max_rounds: int | None) -> Step:
    if max_rounds is None or state.rounds < max_rounds:
        return CallModel()
    message = f"The turn was ended after {state.rounds} rounds of tool calls, the limit of this server."
    error = ev.PlainError(
        type="tool_use_limit_reached_error", message=message, retry_status=ev.RetryStatus(type="exhausted")
    )
    return GoIdle(ev.RetriesExhausted(), error=error)


def _end_of_turn(state: SessionState) -> GoIdle:
    last = state.transcript[-1] if state.transcript else None
    if isinstance(last, AssistantTurn) and last.stop_reason == "refusal":
        return GoIdle(ev.Refusal(), stop_details=last.stop_details)
    return GoIdle(ev.EndTurn())


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` counts requests, the first included. Waits double from `first_s` to `longest_s`."""

    attempts: int = 6
    first_s: float = 0.5
    longest_s: float = 30.0

    def wait(self, attempt: int, *, asked: float | None, jitter: float) -> timedelta:
        """Return the wait after the `attempt`th failure in a row. What the endpoint asked for counts, up to a bound.

        `jitter` in [0, 1) shortens our own wait by up to a quarter, so that many sessions do not come back at once.
        """
        own = min(self.longest_s, self.first_s * 2 ** (attempt - 1)) * (1 - jitter / 4)
        return timedelta(seconds=own if asked is None else max(own, min(asked, self.longest_s)))
