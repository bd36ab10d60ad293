"""The sandbox port: what the server may ask of any driver, and what every driver promises."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"

WORKSPACE = "/workspace"
UPLOADS = "/mnt/session/uploads"
OUTPUTS = "/mnt/session/outputs"

MiB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. A command that goes over gives an error result and the sandbox lives on."""

    memory_bytes: int = 2048 * MiB
    cpus: float = 2.0
    pids: int = 256
    disk_bytes: int = 1024 * MiB
    wall_s: float = 600.0
    """The longest any one call may take, whatever timeout it asks for."""
    output_bytes: int = 64 * MiB
    """How much one command may print before it is killed."""
    cpu_s: float = 3600.0
    """CPU seconds any one process may use."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to provision: one sandbox for one session."""

    session_id: str
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class TextBlock:
    text: str


@dataclass(frozen=True, slots=True)
class MediaBlock:
    """An image or a PDF that the `read` tool met, as base64."""

    kind: Literal["image", "document"]
    media_type: str
    data: str


Block: TypeAlias = TextBlock | MediaBlock


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back."""

    content: tuple[Block, ...]
    is_error: bool

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))


@dataclass(frozen=True, slots=True)
class Running:
    """The hand is at work on the call."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The call ended, and the hand still keeps its result."""

    result: ToolResult


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The call ended and its result was acknowledged: the hand knows only that it must not run again."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """This hand never got the call."""


CallState: TypeAlias = Running | Finished | Acknowledged | Unknown


class Tunnel(Protocol):
    """One connection that a program in the sandbox opened to a port of `Hand.listen`.

    Reading and writing may go on side by side, and one that stands still holds up nothing else. Both raise
    ConnectionResetError when the program is gone and SandboxLost when the stream is. Close it in any case.
    """

    @property
    def door(self) -> str: ...

    async def read(self) -> bytes:
        """Some bytes; none when the program has closed its direction."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more."""
        ...

    async def end(self) -> None:
        """Close our direction."""
        ...

    def close(self) -> None:
        """Let go of it; if it has not ended both ways, it is broken off."""
        ...


class Hand(Protocol):
    """The client of one resident hand, over one stream.

    Every method raises SandboxLost when the stream drops; what was under way in
    the sandbox goes on there. All methods may be used at the same time.
    """

    @property
    def connected(self) -> bool:
        """False once the stream is known to have dropped: from then on nothing is sent over it."""
        ...

    async def call(
        self, call_id: str, tool: str, input: Mapping[str, JSON], *, timeout_s: float | None = None, shell: str = "main"
    ) -> ToolResult:
        """Run a tool, at most once per `call_id`, however often it is asked.

        Asked again with a known id it joins the running call or returns the kept
        result. Raises CallRefused if nothing ran (unknown tool, malformed input,
        an id used before for something else or already acknowledged, a hand that holds too many results).
        Tool failures, exceeded limits and cancellation are results with `is_error`.
        `timeout_s` bounds the call below `Limits.wall_s`. Cancelling this coroutine
        stops the waiting and not the call: use `cancel` for that. Calls of one
        `shell` run one after another; `shell` matters to `bash` only.
        """
        ...

    async def query(self, call_id: str) -> CallState:
        """What the hand knows of this call."""
        ...

    async def acknowledge(self, call_id: str) -> None:
        """The result is safe elsewhere: the hand forgets it, and still never runs that id again."""
        ...

    async def cancel(self, call_id: str) -> None:
        """Kill everything the call started; it then ends with `is_error`. Unknown and finished calls are left alone."""
        ...

    async def put_file(
        self, path: str, source: AsyncIterator[bytes], *, mode: int = 0o644, after_roots: bool = False
    ) -> None:
        """Write a file, whole or not at all, making its parents. Raises FileRefused.

        Below `UPLOADS` the file belongs to the hand: tools read it and cannot change it. `after_roots`: the
        certificate authorities that the sandbox trusts already come first.
        """
        ...

    def get_file(self, path: str) -> AsyncIterator[bytes]:
        """The bytes of a regular file. Raises FileRefused, SandboxLost."""
        ...

    async def listen(self, doors: Mapping[str, int]) -> Mapping[str, int]:
        """Listen on 127.0.0.1 in the sandbox, a port for each door; `tunnels` of this stream then gives what comes.

        Returns the ports: the wanted one if it is free (0: any), else another, and always the same for one door of
        one sandbox. It listens on when the stream drops; whoever connects then waits for the next `listen`.
        """
        ...

    def tunnels(self) -> AsyncIterator[Tunnel]:
        """The connections, as they come, 64 at a time at most. For one reader. Raises SandboxLost at the end."""
        ...

    async def set_environment(self, variables: Mapping[str, str | None]) -> None:
        """Set variables of every later command, in shells that run already too; null takes one away."""
        ...


class Sandbox(Protocol):
    """One started hand and the place it lives in. A new hand is a new sandbox with a new incarnation."""

    @property
    def id(self) -> str: ...

    @property
    def session_id(self) -> str: ...

    @property
    def incarnation(self) -> str:
        """Unique per started hand; the hand itself confirms it at every `connect`."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Hand]:
        """A stream to the hand, to be entered again after a drop. Raises SandboxLost if the hand is gone or another."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """The proof that a driver really ran something here."""

    driver: str
    detail: str


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """Whether one limit holds on this machine, by what means, or why not."""

    name: Literal["memory", "cpus", "cpu_time", "pids", "disk", "wall_time", "output", "network"]
    holds: bool
    means: str


class Driver(Protocol):
    """Starts, finds and removes the sandboxes of one home, and touches no other home's.

    Nothing is ever run without a kernel boundary. What cannot be started raises
    SandboxUnavailable. Sandboxes outlive the process that provisioned them.
    """

    @property
    def name(self) -> str: ...

    async def probe(self) -> Probe:
        """Really run something in a throw-away sandbox. Raises SandboxUnavailable."""
        ...

    async def provision(self, spec: Spec) -> Sandbox:
        """Start a sandbox with an empty workspace, ready for `connect`. Cancelled or failed, it leaves nothing."""
        ...

    async def adopt(self) -> Sequence[Sandbox]:
        """This home's sandboxes whose hand is alive, thawed; whatever else this home left behind is removed."""
        ...

    async def destroy(self, sandbox_id: str) -> None:
        """End the hand and remove all that was its. Unknown or already gone is no error."""
        ...

    async def limits_report(self) -> list[LimitStatus]:
        """Which limits this driver can hold on this machine. Raises SandboxUnavailable."""
        ...

    async def close(self) -> None:
        """Let go of what the driver itself holds open. Sandboxes live on."""
        ...
