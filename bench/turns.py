"""Turns per second of 64 sessions at once, with a model of 1 s and with an instant one.

A turn is a `user.message` sent and its session seen idle again. Targets: with the slow model at least 0.85 of the ideal
64 turns per second, in the median of some windows once all sessions are at work, each having begun at a moment of its
own; with the instant one at least 0.5 of what the bare async SDK makes of the same requests, measured in turns with it.
"""

import asyncio
import math
import statistics
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import anthropic
import httpx2

from bench._server import KEY, MODEL_KEY, Served, scripted_model, served

SESSIONS = 64
WINDOWS = 5
WINDOW_S = 3.0
TURNS = 6
ROUNDS = 5
LEAST_OF_IDEAL = 0.85
LEAST_OF_SDK = 0.5
QUESTION = "Say a word."
SYSTEM = "You are a cook."
IDLE = b"event: session.status_idle\n"
ASKED = b'{"events":[{"type":"user.message","content":[{"type":"text","text":"%s"}]}]}' % QUESTION.encode()

Turn = Callable[[int], Awaitable[None]]


class Session:
    """One session, over plain sockets: a client library in this process would cost as much as the server's turn."""

    def __init__(self, server: Served, session_id: str) -> None:
        self._server = server
        self._path = f"/v1/sessions/{session_id}/events"
        self._idle = asyncio.Event()
        self.listening = asyncio.Event()
        self._line: tuple[StreamReader, StreamWriter] | None = None

    async def listen(self) -> None:
        reader, writer = await self._connected()
        writer.write(self._head("GET", self._path + "/stream") + b"\r\n")
        await _answered(reader)
        self.listening.set()
        seen = b""
        while data := await reader.read(65_536):
            seen = seen[-len(IDLE) :] + data
            if IDLE in seen:
                seen = b""
                self._idle.set()

    async def turn(self) -> None:
        if self._line is None:
            self._line = await self._connected()
        reader, writer = self._line
        self._idle.clear()
        writer.write(self._head("POST", self._path) + b"content-length: %d\r\n\r\n" % len(ASKED) + ASKED)
        await reader.readexactly(await _answered(reader))
        await self._idle.wait()

    async def _connected(self) -> tuple[StreamReader, StreamWriter]:
        url = urlsplit(self._server.url)
        return await asyncio.open_connection(url.hostname, url.port)

    def _head(self, method: str, path: str) -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"
        ).encode()


async def _answered(reader: StreamReader) -> int:
    """The length of the body of an answer that must be a good one."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"the server answered {head[:60]!r}")
    _, found, rest = head.partition(b"content-length: ")
    return int(rest.partition(b"\r")[0]) if found else 0


async def rate(turn: Turn, turns: int) -> float:
    """Turns per second of all sessions together, each making its turns one after another."""

    async def one(number: int) -> None:
        for _ in range(turns):
            await turn(number)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(SESSIONS):
            tasks.create_task(one(number))
    return SESSIONS * turns / (time.perf_counter() - began)


async def steady_rate(turn: Turn) -> float:
    """Turns per second that end within the median window, when each session began at a moment of its own."""
    opens = time.perf_counter() + 2.0
    ended = [0] * WINDOWS

    async def one(number: int) -> None:
        await asyncio.sleep(number / SESSIONS)
        window = -1
        while window < WINDOWS:
            await turn(number)
            window = math.floor((time.perf_counter() - opens) / WINDOW_S)
            if 0 <= window < WINDOWS:
                ended[window] += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(SESSIONS):
            tasks.create_task(one(number))
    return statistics.median(ended) / WINDOW_S


async def sessions_of(server: Served) -> list[Session]:
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        recipe = {"name": "a", "model": "scripted-1", "system": SYSTEM}
        agent = (await client.post("/v1/agents", json=recipe)).json()["id"]
        environment = (await client.post("/v1/environments", json={"name": "e"})).json()["id"]
        body = {"agent": agent, "environment_id": environment}
        made = [await client.post("/v1/sessions", json=body) for _ in range(SESSIONS)]
        return [Session(server, answer.json()["id"]) for answer in made]


class Bare:
    """The same conversations, held by the SDK alone: nothing logged, nothing shown to anybody."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client
        self._histories: list[list[anthropic.types.MessageParam]] = [[] for _ in range(SESSIONS)]

    async def turn(self, number: int) -> None:
        history = self._histories[number]
        history.append({"role": "user", "content": QUESTION})
        async with self._client.messages.stream(
            model="scripted-1", max_tokens=1024, system=SYSTEM, messages=history
        ) as stream:
            text = await stream.get_final_text()
        history.append({"role": "assistant", "content": text})


async def measure() -> bool:
    async with scripted_model("--delay-ms", "1000") as model, served(model) as server:
        of_ideal = await through_galley(server, steady_rate) / SESSIONS
    print(f"model of 1 s:   {of_ideal * SESSIONS:6.1f} turns/s of {SESSIONS} ideal: {of_ideal:.2f}", end="")
    print(f"  (at least {LEAST_OF_IDEAL})", flush=True)
    async with scripted_model() as model, served(model) as server:
        of_sdk = await through_galley(server, lambda turn: against_sdk(model, turn))
    return of_ideal >= LEAST_OF_IDEAL and of_sdk >= LEAST_OF_SDK


async def through_galley(server: Served, measured: Callable[[Turn], Awaitable[float]]) -> float:
    sessions = await sessions_of(server)
    async with asyncio.TaskGroup() as tasks:
        listeners = [tasks.create_task(session.listen()) for session in sessions]
        for session in sessions:
            await session.listening.wait()
        found = await measured(lambda number: sessions[number].turn())
        for listener in listeners:
            listener.cancel()
    return found


async def against_sdk(model_url: str, turn: Turn) -> float:
    """Side by side, so that other load on the machine hits both."""
    async with anthropic.AsyncAnthropic(base_url=model_url, api_key=MODEL_KEY) as client:
        bare = Bare(client)
        await rate(bare.turn, 1)
        await rate(turn, 1)
        rounds = [(await rate(turn, TURNS), await rate(bare.turn, TURNS)) for _ in range(ROUNDS)]
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"instant model:  {ours:6.1f} turns/s, bare SDK {theirs:6.1f}: {ratio:.2f}  (at least {LEAST_OF_SDK})")
    return ratio


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
