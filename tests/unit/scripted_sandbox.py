"""A driver without processes: sandboxes that outlive connections, remember calls, and fail when told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from galley_sandbox.errors import (
    CallRefused,
    FileRefused,
    HandMisbehaved,
    SandboxError,
    SandboxLost,
    SandboxUnavailable,
)
from galley_sandbox.port import (
    JSON,
    Acknowledged,
    CallState,
    Finished,
    LimitStatus,
    Probe,
    Sandbox,
    Spec,
    TextBlock,
    ToolResult,
    Tunnel,
    Unknown,
)
from galley_server.errors import NotFound


@dataclass(eq=False)
class ScriptedSandbox:
    """What would be a container: it outlives connections, remembers calls, and dies when told."""

    id: str
    session_id: str
    incarnation: str
    alive: bool = True
    misbehaves: bool = False
    """Answers the next call with nonsense."""
    mute: bool = False
    """Answers no question and takes no file."""
    shut: bool = False
    """Takes no new connection."""
    drops: int = 0
    """How many of the next calls run and then lose the connection before the answer."""
    tells: bool = False
    """The client notices at once that a line broke, and not only at its next call."""
    cuts: int = 0
    open_lines: int = 0
    connects: int = 0
    ran: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    kept: dict[str, ToolResult] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    environment: dict[str, str | None] = field(default_factory=dict)
    refuses: str | None = None
    blocked: dict[str, asyncio.Event] = field(default_factory=dict)
    deaf: bool = False
    """Cancelled calls do not end."""
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["ScriptedHand"]:
        self.connects += 1
        self.check()
        if self.shut:
            await asyncio.Event().wait()
        self.open_lines += 1
        await self.move()
        try:
            yield ScriptedHand(self)
        finally:
            self.open_lines -= 1

    def check(self) -> None:
        if not self.alive:
            raise SandboxLost("the hand is gone")

    def cut(self) -> None:
        """Break every open connection."""
        self.cuts += 1

    async def move(self) -> None:
        async with self.moved:
            self.moved.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5), self.moved:
            await self.moved.wait_for(true)


class ScriptedHand:
    def __init__(self, place: ScriptedSandbox) -> None:
        self.place = place
        self.cuts = place.cuts

    @property
    def connected(self) -> bool:
        return not self.place.tells or (self.place.alive and self.cuts == self.place.cuts)

    def check(self) -> None:
        self.place.check()
        if self.cuts != self.place.cuts:
            raise SandboxLost("the stream dropped")

    async def call(
        self, call_id: str, tool: str, input: Mapping[str, JSON], *, timeout_s: float | None = None, shell: str = "main"
    ) -> ToolResult:
        place = self.place
        self.check()
        place.inputs.append(json.dumps(input))
        if place.misbehaves:
            raise HandMisbehaved("nonsense")
        if place.refuses is not None:
            raise CallRefused(place.refuses)
        if call_id not in place.kept:
            place.ran.append(call_id)
            await place.move()
            if (gate := place.blocked.get(call_id)) is not None:
                await gate.wait()
            place.check()
            place.kept.setdefault(call_id, ToolResult((TextBlock(f"ran {call_id}"),), is_error=False))
        if place.drops:
            place.drops -= 1
            raise SandboxLost("the stream dropped")
        return place.kept[call_id]

    async def query(self, call_id: str) -> CallState:
        self.check()
        if self.place.misbehaves:
            raise HandMisbehaved("nonsense")
        if self.place.mute:
            await asyncio.Event().wait()
        if call_id in self.place.acknowledged:
            return Acknowledged()
        kept = self.place.kept.get(call_id)
        return Unknown() if kept is None else Finished(kept)

    async def acknowledge(self, call_id: str) -> None:
        self.check()
        if call_id in self.place.ran and call_id not in self.place.kept:
            raise CallRefused("still running")
        self.place.acknowledged.add(call_id)
        await self.place.move()

    async def cancel(self, call_id: str) -> None:
        gate = self.place.blocked.get(call_id)
        if gate is not None and not self.place.deaf:
            self.place.kept[call_id] = ToolResult((TextBlock("cancelled"),), is_error=True)
            gate.set()

    async def put_file(
        self, path: str, source: AsyncIterator[bytes], *, mode: int = 0o644, after_roots: bool = False
    ) -> None:
        self.check()
        if self.place.mute:
            await asyncio.Event().wait()
        content = b"".join([piece async for piece in source])
        if content == b"too much":
            raise FileRefused(path, "no space left on device")
        self.place.files[path] = (content, mode)

    async def get_file(self, path: str) -> AsyncIterator[bytes]:
        self.check()
        if path not in self.place.files:
            raise FileRefused(path, "no such file or directory")
        yield self.place.files[path][0]

    async def listen(self, doors: Mapping[str, int]) -> Mapping[str, int]:
        self.check()
        return doors

    async def tunnels(self) -> AsyncIterator[Tunnel]:
        """Nothing in it ever wants to go out."""
        await asyncio.Event().wait()
        nothing: tuple[Tunnel, ...] = ()
        for tunnel in nothing:
            yield tunnel

    async def set_environment(self, variables: Mapping[str, str | None]) -> None:
        self.check()
        self.place.environment.update(variables)


class ScriptedDriver:
    def __init__(self, name: str = "scripted") -> None:
        self.name = name
        self.places: dict[str, ScriptedSandbox] = {}
        self.destroyed: list[str] = []
        self.probes = 0
        self.provisions = 0
        self.broken: SandboxError | None = None
        self.stuck_destroys = 0
        self.probe_gate: asyncio.Event | None = None
        self.began = asyncio.Event()
        self.removed = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.cancelled = 0
        self.closed = False
        self._ids = count(1)

    async def probe(self) -> Probe:
        self.probes += 1
        if self.probe_gate is not None:
            await self.probe_gate.wait()
        if self.broken is not None:
            raise self.broken
        return Probe(self.name, "it is a script")

    async def provision(self, spec: Spec) -> Sandbox:
        self.provisions += 1
        self.began.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.broken is not None:
            raise self.broken
        return self.place(spec.session_id)

    def place(self, session_id: str) -> ScriptedSandbox:
        number = next(self._ids)
        place = ScriptedSandbox(f"{self.name}-{number}", session_id, f"{self.name}-incarnation-{number}")
        self.places[place.id] = place
        return place

    async def adopt(self) -> list[Sandbox]:
        if self.broken is not None:
            raise self.broken
        return [place for place in self.places.values() if place.alive]

    async def destroy(self, sandbox_id: str) -> None:
        if self.stuck_destroys:
            self.stuck_destroys -= 1
            raise SandboxUnavailable("The engine is away.", fix="bring it back.")
        self.destroyed.append(sandbox_id)
        if (place := self.places.pop(sandbox_id, None)) is not None:
            place.alive = False
        self.removed.set()

    async def limits_report(self) -> list[LimitStatus]:
        return []

    async def close(self) -> None:
        self.closed = True

    @property
    def only(self) -> ScriptedSandbox:
        (place,) = self.places.values()
        return place


class ScriptedFiles:
    def __init__(self) -> None:
        self.contents = {"file_1": b"a,b\n", "file_big": b"too much"}
        self.reads: list[str] = []

    async def content(self, file_id: str) -> AsyncIterator[bytes]:
        self.reads.append(file_id)
        if file_id not in self.contents:
            raise NotFound(f"There is no file {file_id}.")
        yield self.contents[file_id]


@dataclass
class Everyone:
    over: set[str] = field(default_factory=set)

    async def alive(self, session_ids: Collection[str]) -> Collection[str]:
        return [session_id for session_id in session_ids if session_id not in self.over]
