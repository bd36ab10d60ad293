"""What `galley serve` holds in memory, idle and with 1,000 idle sessions, and how long it takes to be ready.

Each session has had one turn. Targets: at most 150 MB idle and 180 MB with the sessions, resident.
"""

import asyncio
import sys
import time

import httpx2
import psutil

from bench._server import scripted_model, served

SESSIONS = 1_000
AT_ONCE = 16
MOST_IDLE_MB = 150
MOST_WITH_SESSIONS_MB = 180


def resident_mb(pid: int) -> float:
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 1e6


async def one_session(client: httpx2.AsyncClient, agent: str, environment: str) -> None:
    """A session that was asked something and answered."""
    asked = {"type": "user.message", "content": [{"type": "text", "text": "Say a word."}]}
    body = {"agent": agent, "environment_id": environment, "initial_events": [asked]}
    session = (await client.post("/v1/sessions", json=body)).raise_for_status().json()["id"]
    async with client.stream("GET", f"/v1/sessions/{session}/events/stream?after_event_id=row_0") as stream:
        async for line in stream.aiter_lines():
            if line == "event: session.status_idle":
                return


async def many_sessions(client: httpx2.AsyncClient) -> None:
    agent = (await client.post("/v1/agents", json={"name": "a", "model": "scripted-1"})).json()["id"]
    environment = (await client.post("/v1/environments", json={"name": "e"})).json()["id"]
    left = iter(range(SESSIONS))

    async def work() -> None:
        for _ in left:
            await one_session(client, agent, environment)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(work())


async def measure() -> bool:
    async with scripted_model() as model:
        began = time.perf_counter()
        async with served(model) as server:
            ready_s = time.perf_counter() - began
            async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
                await client.get("/healthz")
                await asyncio.sleep(3)  # the probe of the sandbox drivers is over
                idle = resident_mb(server.pid)
                await many_sessions(client)
            await asyncio.sleep(12)  # the runners that linger after a turn have left
            full = resident_mb(server.pid)
    print(f"ready after {ready_s:.2f} s")
    print(f"idle                      {idle:5.0f} MB   (at most {MOST_IDLE_MB})")
    print(f"with {SESSIONS:,} idle sessions  {full:5.0f} MB   (at most {MOST_WITH_SESSIONS_MB})")
    return idle <= MOST_IDLE_MB and full <= MOST_WITH_SESSIONS_MB


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
