"""Mint a grant and verify its token: small, as a sandbox gets one; narrowed by a parent agent; and large.

Target: at most 0.2 ms for mint and verify of the first two, p50. Also a lookup in the registry, as each request at a
door makes one.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.narrow import narrow
from galley_vault_proxy.grant.registry import NoGate, Registry
from galley_vault_proxy.grant.token import Grant, HostRule, ServerRule, milliseconds, mint, moment, verify
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.state import State

TARGET_MS = 0.2
RUNS = 3_000
KEY = bytes(range(32))
NOW = datetime.now(UTC)
END = moment(milliseconds(NOW + timedelta(hours=1)))


def grant(servers: int, tools: int, hosts: int) -> Grant:
    names = frozenset(f"tool_{number}" for number in range(tools))
    return Grant(
        id=new_id("grant"),
        session_id="sesn_01M83WBP8BWWJJ2TBDWKNJVJA9",
        thread_id="sthr_01",
        vault_ids=(new_id("vlt"), new_id("vlt")),
        servers=tuple(ServerRule(f"server_{n}", f"https://mcp{n}.example.com/v1", names) for n in range(servers)),
        hosts=tuple(HostRule(f"api{n}.example.com", (443,), ("GET",), ("/v1",)) for n in range(hosts)),
        tunnel=new_id("tun"),
        expires_at=END,
    )


def both(made: Grant, *, narrowed: bool) -> Callable[[], None]:
    def once() -> None:
        token = mint(KEY, made)
        if narrowed:
            token = narrow(token, servers=["server_0"], tools=["tool_0"], expires_in=60, now=NOW)
        verify(KEY, token, now=NOW)

    return once


def quantiles(run: Callable[[], None]) -> tuple[float, float]:
    for _ in range(200):
        run()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


async def lookups() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as home:
        async with (
            State.open(Path(home) / "state.db", [rows.SCHEMA]) as state,
            Registry.open(state, key=KEY, gate=NoGate()) as registry,
        ):
            made = grant(2, 8, 2)
            token, times = await registry.issue(made), []
            for _ in range(RUNS):
                began = time.perf_counter()
                await registry.lookup(token, made.tunnel)
                times.append((time.perf_counter() - began) * 1e3)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


def main() -> int:
    small, large = grant(2, 8, 2), grant(8, 64, 16)
    results = {
        "mint + verify": quantiles(both(small, narrowed=False)),
        "mint + narrow + verify": quantiles(both(small, narrowed=True)),
        "mint + verify, 8 servers of 64 tools": quantiles(both(large, narrowed=False)),
        "lookup of a live grant": asyncio.run(lookups()),
    }
    for name, (p50, p99) in results.items():
        print(f"   {name:<38} p50 {p50:.3f} ms   p99 {p99:.3f} ms")
    worst = max(results["mint + verify"][0], results["mint + narrow + verify"][0])
    print(f"   target: {TARGET_MS} ms p50, found {worst:.3f} ms")
    return 0 if worst <= TARGET_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
