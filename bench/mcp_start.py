"""`galley mcp` from the start of its process to its first answer, with a server already running.

Against the bare interpreter starting and printing a line. Target: at most 0.3 s.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.mcp_stdio import galley_server

RUNS = 10
TARGET_S = 0.3
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}},
}


def first_line_s(arguments: list[str], environ: dict[str, str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        took = time.perf_counter() - start
        process.stdin.close()
    if not line.startswith(b"{"):
        raise RuntimeError(f"no answer but {line!r}")
    return took


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with galley_server(Path(folder)) as environ:
            bare, galley = [], []
            for _ in range(RUNS):
                bare.append(await asyncio.to_thread(first_line_s, ["-c", "print('{}')"], environ))
                galley.append(await asyncio.to_thread(first_line_s, ["-m", "galley_server", "mcp"], environ))
    worst = max(galley)
    print(
        f"   python alone {statistics.median(bare) * 1000:.0f} ms, "
        f"galley mcp {statistics.median(galley) * 1000:.0f} ms, worst {worst * 1000:.0f} ms (at most {TARGET_S:.1f} s)"
    )
    return 0 if statistics.median(galley) <= TARGET_S else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
