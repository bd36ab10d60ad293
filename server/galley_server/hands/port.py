"""The port between the brain and the hands: what the brain may ask, and what every implementation promises."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from galley_server.wire.agent import SessionAgent
from galley_server.wire.base import JSON
from galley_server.wire.content import ResultBlock


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool as a Messages API request offers it."""

    name: str
    description: str
    input_schema: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call. `event_id` is the `sevt_...` of its agent.tool_use: its identity all the way down into the sandbox."""

    event_id: str
    name: str
    input: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What the log keeps of a finished call. An error's `content` is never empty: the Messages API refuses that."""

    content: tuple[ResultBlock, ...]
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A file that a fresh sandbox gets before its first call. `path` is absolute, as the sandbox sees it."""

    file_id: str
    path: str


class FileSource(Protocol):
    """Where the bytes of a mounted file come from."""

    def content(self, file_id: str) -> AsyncIterator[bytes]:
        """Yield the file in pieces of at most 1 MiB. Raises NotFound if there is no such file (any more)."""
        ...


class OutputSink(Protocol):
    """Where the files go that a session made for its user."""

    async def keep(self, session_id: str, filename: str, content: AsyncIterator[bytes]) -> None:
        """Store a file as one of the session's, unless the session has one of this name with these bytes.

        Raises RequestError when it cannot be stored; what `content` raises passes through.
        """
        ...


class LiveSessions(Protocol):
    """Who still needs a sandbox."""

    async def alive(self, session_ids: Collection[str]) -> Collection[str]:
        """Return those of `session_ids` that are neither archived, deleted nor terminated."""
        ...


class Hands(Protocol):
    """Executes tool calls, each at most once.

    The order of one call: its agent.tool_use is logged, then `incarnation`, then a dispatch row with that
    incarnation is logged, then `execute`, then its result is logged, then `acknowledge`. After a crash: `recover`
    for each call that has a dispatch row and no result; a call without one was never sent and is simply begun.
    """

    def offered(self, agent: SessionAgent) -> tuple[ToolDefinition, ...]:
        """The tools to offer the model, always in the same order for the same agent (prompt caching)."""
        ...

    def refused(self, call: ToolCall) -> ToolOutcome | None:
        """The outcome of a call that needs no sandbox to fail: its input does not fit the tool. Pure."""
        ...

    def prepare(self, session_id: str, mounts: Sequence[Mount]) -> None:
        """Begin to provision in the background. Never raises, never waits."""
        ...

    async def incarnation(self, session_id: str, mounts: Sequence[Mount], *, last: str | None = None) -> str:
        """Return the incarnation of the session's sandbox, provisioning it if need be. Raises
        `galley_sandbox.errors.SandboxUnavailable`, whose message says what to do about it; the next call tries again.

        `last` is the incarnation of the session's latest dispatch. If the sandbox is another one, the first result
        from it says that earlier files are gone.
        """
        ...

    def at_hand(self, session_id: str, mounts: Sequence[Mount], *, last: str | None) -> str | None:
        """What `incarnation` would return at once, None if it would have to wait. A dispatch can then be logged with
        the call itself."""
        ...

    async def execute(self, session_id: str, call: ToolCall, incarnation: str) -> ToolOutcome:
        """Run a call whose dispatch row was logged. Raises nothing but cancellation: a failure is an outcome."""
        ...

    async def recover(self, session_id: str, call: ToolCall, incarnation: str) -> ToolOutcome:
        """Bring a call that may have been sent before a crash to its outcome, without ever running it twice.

        In the same incarnation the hand knows whether it arrived: it is joined, or its kept result is taken, or it
        is run. Otherwise the outcome is an error that begins with `interrupted, may have run`.
        """
        ...

    async def acknowledge(self, session_id: str, call_id: str) -> None:
        """The result is durable: the hand may forget it. Never raises."""
        ...

    async def interrupt(self, session_id: str, call_ids: Collection[str]) -> None:
        """Kill what these calls started. Their `execute` then returns an error outcome within seconds. Never raises."""
        ...

    def gather(self, session_id: str) -> None:
        """A turn is over: begin to keep what its tools put into the outputs directory. Never raises, never waits."""
        ...

    async def release(self, session_id: str) -> None:
        """The session is archived, deleted or terminated: its sandbox goes. Idempotent; never raises."""
        ...
