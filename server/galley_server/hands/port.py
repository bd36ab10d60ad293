"""The port between the brain and the hands: what the brain may ask, and what every implementation promises."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from galley_sandbox.port import Hand

from galley_server.hands.access import Access
from galley_server.log.internal import McpListing
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
    """One call. `event_id` is the `sevt_...` of its agent.tool_use: its identity all the way down into the sandbox.

    `server`: the MCP server whose tool `name` is; None for a tool of the sandbox.
    """

    event_id: str
    name: str
    input: Mapping[str, JSON]
    server: str | None = None


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


@dataclass(frozen=True, slots=True)
class ServerFault:
    """Why a server could not be asked for its tools. `message` is for the session's user."""

    server: str
    message: str
    type: Literal["mcp_connection_failed_error", "mcp_authentication_failed_error"] = "mcp_connection_failed_error"


@dataclass(frozen=True, slots=True)
class CredentialFault:
    """A credential of the session that is for a host which its environment does not let it reach."""

    vault_id: str
    credential_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Reach:
    """What a session can reach beyond its sandbox, found out at the start of a turn."""

    servers: tuple[McpListing, ...] = ()
    faults: tuple[ServerFault | CredentialFault, ...] = ()


class ToolServers(Protocol):
    """The MCP servers of sessions. They are reached through the vault proxy and in no other way."""

    async def reach(self, session_id: str, access: Access) -> Reach:
        """Ask every server for its tools. Bounded in time; raises nothing but cancellation."""
        ...

    async def call(
        self, session_id: str, access: Access, call: ToolCall, schema: Mapping[str, JSON] | None
    ) -> ToolOutcome:
        """Make a call whose dispatch row was logged, once: it is never sent again. Raises nothing but cancellation.

        `schema`: the tool's, as it was listed. Cancelled, the server is told so.
        """
        ...


class Outlets(Protocol):
    """The ways out of sandboxes: to the vault proxy, or none."""

    def open(self, session_id: str, hand: Hand) -> AbstractAsyncContextManager[str | None]:
        """Give a sandbox its way out for as long as the block lasts, and keep its token fresh.

        Yields None, or what to tell the model about a way out that is missing. Raises SandboxLost.
        """
        ...

    async def end(self, session_id: str) -> None:
        """The session is over: nothing of it reaches anything any more. Idempotent; never raises."""
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
