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
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anthropic
import httpx2

from bench._server import MODEL_KEY, Served, scripted_model, served
from bench._wire import Wire

SESSIONS = 64
WINDOWS = 5
WINDOW_S = 3.0
TURNS = 6
ROUNDS = 5
LEAST_OF_IDEAL = 0.85
LEAST_OF_SDK = 0.5
QUESTION = "Say a word."
SYSTEM = "You are a cook."

Turn = Callable[[int], Awaitable[None]]


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


async def new_sessions(server: Served) -> list[str]:
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        recipe = {"name": "a", "model": "scripted-1", "system": SYSTEM}
        agent = (await client.post("/v1/agents", json=recipe)).json()["id"]
        environment = (await client.post("/v1/environments", json={"name": "e"})).json()["id"]
        body = {"agent": agent, "environment_id": environment}
        return [(await client.post("/v1/sessions", json=body)).json()["id"] for _ in range(SESSIONS)]


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
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.open(server, session)) for session in await new_sessions(server)]

        async def turn(number: int) -> None:
            await wires[number].say(QUESTION)
            await wires[number].hear(b"session.status_idle")

        return await measured(turn)


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
