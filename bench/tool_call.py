"""`bash` `true` in a warm Docker sandbox, from its use in the log to its result in the log, against `docker exec`.

    python -m bench.tool_call

`docker exec` is what the engine's API takes for the same command in the same container: create, start and wait for the
end, ask for the exit code. Nothing of it is logged. Ours must be at least 15 times faster all the same.
"""

import asyncio
import statistics
import sys
import time

import docker
from docker.models.containers import Container

from bench._hands import open_kitchen

ROUNDS = 10
CALLS = 10
TARGET = 15.0


def exec_ms(container: Container) -> float:
    began = time.perf_counter()
    code, _ = container.exec_run(["true"])
    took = (time.perf_counter() - began) * 1000
    assert code == 0
    return took


async def main() -> int:
    ours: list[float] = []
    theirs: list[float] = []
    async with open_kitchen("docker") as kitchen:
        session_id = await kitchen.session()
        engine = docker.from_env()
        container = engine.containers.get(await kitchen.sandbox_id(session_id))
        await kitchen.call(session_id, "true")  # the shell starts at its first command
        for _ in range(ROUNDS):  # side by side, so that other load on the machine hits both
            ours += [await kitchen.call(session_id, "true") for _ in range(CALLS)]
            theirs += [await asyncio.to_thread(exec_ms, container) for _ in range(CALLS)]
        engine.close()
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"bash true: {statistics.median(ours):.2f} ms, docker exec {statistics.median(theirs):.1f} ms: ", end="")
    print(f"{ratio:.1f} times faster (at least {TARGET:.0f})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
