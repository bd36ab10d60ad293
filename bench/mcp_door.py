"""An MCP echo through the door of the vault proxy against the same server without it, in both protocol eras.

The door checks the grant, the policy, the pinned definition and its schema, injects the credential, takes it out of the
answer, and writes its audit line. Targets: at most 2 ms (p50) and 8 ms (p99) more than without it, and at least half as
many requests a second, 8 at once.
"""

import asyncio
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2

ROUNDS = 10
CALLS = 100
AT_ONCE = 8
BURST = 400
ADDED_P50_MS = 2.0
ADDED_P99_MS = 8.0
RATIO = 0.5
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
}


@dataclass
class Endpoint:
    """One way to the server, in one era."""

    client: httpx2.AsyncClient
    url: str
    headers: dict[str, str]
    meta: dict[str, object]
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    tool: str = "echo"

    async def call(self) -> None:
        params = {"name": self.tool, "arguments": {"text": "hello"}, "_meta": self.meta}
        body = {"jsonrpc": "2.0", "id": next(self.ids), "method": "tools/call", "params": params}
        answer = await self.client.post(self.url, json=body, headers=self.headers)
        assert answer.status_code == 200, answer.text
        assert "hello" in answer.text, answer.text


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[str]:
    """One of the programs, and what it prints first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench._mcp_door", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def modern(client: httpx2.AsyncClient, url: str, token: str) -> Endpoint:
    headers = {
        "accept": "application/json, text/event-stream",
        "authorization": f"Bearer {token}",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tools/call",
        "mcp-name": "echo",
    }
    return Endpoint(client, url, headers, dict(META))


async def legacy(client: httpx2.AsyncClient, url: str, token: str) -> Endpoint:
    headers = {"accept": "application/json, text/event-stream", "authorization": f"Bearer {token}"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    answer = await client.post(url, json=hello, headers=headers)
    headers["mcp-protocol-version"] = "2025-11-25"
    if "mcp-session-id" in answer.headers:
        headers["mcp-session-id"] = answer.headers["mcp-session-id"]
    await client.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
    return Endpoint(client, url, headers, {})


async def one_after_another(endpoint: Endpoint) -> list[float]:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await endpoint.call()
        times.append((time.perf_counter() - began) * 1000)
    return times


async def per_second(endpoint: Endpoint) -> float:
    async def some() -> None:
        for _ in range(BURST // AT_ONCE):
            await endpoint.call()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(some())
    return BURST / (time.perf_counter() - began)


async def measure(name: str, connect: Callable[..., object], server: str, door: str, token: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        direct = await connect(client, server, "none")  # type: ignore[misc]
        through = await connect(client, door, token)  # type: ignore[misc]
        await one_after_another(direct), await one_after_another(through)  # warm
        gc.collect()
        plain: list[float] = []
        added: list[float] = []
        ratios: list[float] = []
        # In turns, so that what else the machine does falls on both.
        for _ in range(ROUNDS):
            plain += await one_after_another(direct)
            added += await one_after_another(through)
        for _ in range(ROUNDS // 2):
            ratios.append(1 / await per_second(direct) * await per_second(through))
    p50 = statistics.median(added) - statistics.median(plain)
    p99 = statistics.quantiles(added, n=100)[98] - statistics.quantiles(plain, n=100)[98]
    ratio = statistics.median(ratios)
    print(
        f"{name}: direct p50 {statistics.median(plain):.2f} ms; the door adds p50 {p50:.2f} ms "
        f"(at most {ADDED_P50_MS:g}), p99 {p99:.2f} ms (at most {ADDED_P99_MS:g}); "
        f"{AT_ONCE} at once {ratio:.2f} of direct (at least {RATIO:g})"
    )
    return p50 <= ADDED_P50_MS and p99 <= ADDED_P99_MS and ratio >= RATIO


async def main() -> int:
    async with program("server") as server, program("door", server) as said:
        door, token = said.split()
        good = [
            await measure("2026-07-28", modern, server, door, token),
            await measure("2025-11-25", legacy, server, door, token),
        ]
    print(json.dumps({"ok": all(good)}))
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
