"""Turns per second of 64 sessions at once, with a model of 1 s and with an instant one.

A turn is a `user.message` sent and its session idle again. Targets: with the slow model at least 0.85 of the ideal
64 turns per second; with the instant one at least 0.5 of what the bare async SDK makes of the same requests.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import anthropic
import httpx2

from bench._server import MODEL_KEY, scripted_model, served

SESSIONS = 64
TURNS_SLOW = 6
TURNS_INSTANT = 12
LEAST_OF_IDEAL = 0.85
LEAST_OF_SDK = 0.5
QUESTION = "Say a word."
SYSTEM = "You are a cook."


class Session:
    """One session and the stream on which its idling is seen."""

    def __init__(self, client: httpx2.AsyncClient, session_id: str) -> None:
        self._client = client
        self._path = f"/v1/sessions/{session_id}/events"
        self._idle = asyncio.Event()
        self.listening = asyncio.Event()

    async def listen(self) -> None:
        async with self._client.stream("GET", f"{self._path}/stream", timeout=None) as stream:
            self.listening.set()
            async for line in stream.aiter_lines():
                if line == "event: session.status_idle":
                    self._idle.set()

    async def turn(self) -> None:
        self._idle.clear()
        event = {"type": "user.message", "content": [{"type": "text", "text": QUESTION}]}
        (await self._client.post(self._path, json={"events": [event]})).raise_for_status()
        await self._idle.wait()


async def rate(turn: Callable[[int], Awaitable[None]], turns: int) -> float:
    """Turns per second of all sessions together, each making its turns one after another."""

    async def one(number: int) -> None:
        for _ in range(turns):
            await turn(number)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(SESSIONS):
            tasks.create_task(one(number))
    return SESSIONS * turns / (time.perf_counter() - began)


async def galley_rate(model_url: str, turns: int) -> float:
    limits = httpx2.Limits(max_connections=None)
    async with (
        served(model_url) as server,
        httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=60, limits=limits) as client,
    ):
        recipe = {"name": "a", "model": "scripted-1", "system": SYSTEM}
        agent = (await client.post("/v1/agents", json=recipe)).json()["id"]
        environment = (await client.post("/v1/environments", json={"name": "e"})).json()["id"]
        body = {"agent": agent, "environment_id": environment}
        made = [await client.post("/v1/sessions", json=body) for _ in range(SESSIONS)]
        sessions = [Session(client, answer.json()["id"]) for answer in made]
        async with asyncio.TaskGroup() as tasks:
            listeners = [tasks.create_task(session.listen()) for session in sessions]
            for session in sessions:
                await session.listening.wait()
            await rate(lambda number: sessions[number].turn(), 1)
            found = await rate(lambda number: sessions[number].turn(), turns)
            for listener in listeners:
                listener.cancel()
        return found


async def sdk_rate(model_url: str, turns: int) -> float:
    """The same conversations, held by the SDK alone: nothing logged, nothing shown to anybody."""
    async with anthropic.AsyncAnthropic(base_url=model_url, api_key=MODEL_KEY) as client:
        histories: list[list[anthropic.types.MessageParam]] = [[] for _ in range(SESSIONS)]

        async def turn(number: int) -> None:
            history = histories[number]
            history.append({"role": "user", "content": QUESTION})
            async with client.messages.stream(
                model="scripted-1", max_tokens=1024, system=SYSTEM, messages=history
            ) as stream:
                text = await stream.get_final_text()
            history.append({"role": "assistant", "content": text})

        await rate(turn, 1)
        return await rate(turn, turns)


async def measure() -> bool:
    async with scripted_model("--delay-ms", "1000") as model:
        slow = await galley_rate(model, TURNS_SLOW)
    of_ideal = slow / SESSIONS
    print(f"model of 1 s:   {slow:6.1f} turns/s of {SESSIONS} ideal: {of_ideal:.2f}  (at least {LEAST_OF_IDEAL})")
    async with scripted_model() as model:
        bare = await sdk_rate(model, TURNS_INSTANT)
        instant = await galley_rate(model, TURNS_INSTANT)
    of_sdk = instant / bare
    print(f"instant model:  {instant:6.1f} turns/s, bare SDK {bare:6.1f}: {of_sdk:.2f}  (at least {LEAST_OF_SDK})")
    return of_ideal >= LEAST_OF_IDEAL and of_sdk >= LEAST_OF_SDK


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
