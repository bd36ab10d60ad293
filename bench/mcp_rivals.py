"""What the MCP door adds to a call, against what the proxies of `fastmcp` and ContextForge add to the same call.

One echo server, one client, and all of them in turns. The rivals run as they come and as their documentation says for
production; the door checks, pins, redacts and audits, of which they do the least. Target: at least 20 times less.
ContextForge is also measured with stateful sessions, which it does not come with: that is told, and is no claim.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2

from bench import _mcp_rivals as rivals
from bench.mcp_door import Endpoint, legacy, modern, program

ROUNDS = 8
CALLS = 25
RIVAL_CALLS = 8
TARGET = 20.0


async def took_ms(endpoint: Endpoint, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        await endpoint.call()
        times.append((time.perf_counter() - began) * 1000)
    return times


async def medians(ways: Mapping[str, Endpoint]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, endpoint in ways.items():
            found = await took_ms(endpoint, RIVAL_CALLS if name == "rival" else CALLS)
            if turn:  # the first one warms everything
                times[name] += found
    return {name: statistics.median(found) for name, found in times.items()}


@asynccontextmanager
async def connected(
    era: str, server: str, door: str, token: str, rival: rivals.Rival
) -> AsyncIterator[dict[str, Endpoint]]:
    connect = modern if era == "2026-07-28" else legacy
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        ways = {
            "direct": await connect(client, server, "none"),
            "door": await connect(client, door, token),
            "rival": await connect(client, rival.url, rival.token),
        }
        ways["rival"].tool = rival.tool
        if "mcp-name" in ways["rival"].headers:
            ways["rival"].headers["mcp-name"] = rival.tool
        yield ways


async def compare(name: str, era: str, server: str, door: str, token: str, rival: rivals.Rival) -> float:
    """How many times as much the rival adds as the door."""
    async with connected(era, server, door, token, rival) as ways:
        found = await medians(ways)
    ours, theirs = found["door"] - found["direct"], found["rival"] - found["direct"]
    ratio = theirs / ours
    print(
        f"{name}, {era}: direct {found['direct']:.2f} ms; the door adds {ours:.2f} ms, it adds {theirs:.2f} ms: "
        f"{ratio:.0f} times as much (at least {TARGET:g})",
        flush=True,
    )
    return ratio


async def main() -> int:
    fastmcp, contextforge = rivals.install(rivals.FASTMCP), rivals.install(rivals.CONTEXTFORGE)
    ratios: list[float] = []
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(program("server"))
        door, token = (await stack.enter_async_context(program("door", server))).split()
        async with rivals.fastmcp(fastmcp, server) as rival:
            for era in ("2026-07-28", "2025-11-25"):
                ratios.append(await compare("fastmcp", era, server, door, token, rival))
        async with rivals.contextforge(contextforge, server, stateful=False) as rival:
            ratios.append(await compare("ContextForge", "2025-11-25", server, door, token, rival))
        async with rivals.contextforge(contextforge, server, stateful=True) as rival:
            await compare("ContextForge with stateful sessions (no claim)", "2025-11-25", server, door, token, rival)
    print(json.dumps({"ok": min(ratios) >= TARGET, "ratio": round(min(ratios), 1)}))
    return 0 if min(ratios) >= TARGET else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            raise SystemExit(asyncio.run(main()))
        except rivals.NotInstalled as error:
            print(f"the rivals cannot be measured: {error}", file=sys.stderr)
            raise SystemExit(1) from None
