"""`bash` `true` in one session while 20 others run `sleep 20`, against the same with nobody else there.

    python -m bench.tool_call_contention [--driver docker|bubblewrap]

Each figure is a whole call, from its use in the log to its result in the log. At most 3 times the idle one.
"""

import asyncio
import statistics
import sys
import time

from bench._hands import Kitchen, chosen_driver, open_kitchen

OTHERS = 20
CALLS = 50
TARGET = 3.0


async def median_ms(kitchen: Kitchen, session_id: str) -> float:
    return statistics.median([await kitchen.call(session_id, "true") for _ in range(CALLS)])


async def main(driver: str) -> int:
    async with open_kitchen(driver) as kitchen:
        ours = await kitchen.session()
        idle = [await median_ms(kitchen, ours)]
        others = [await kitchen.session() for _ in range(OTHERS)]
        idle.append(await median_ms(kitchen, ours))  # the others have sandboxes now, and do nothing in them
        async with asyncio.TaskGroup() as tasks:
            sleeping = [tasks.create_task(kitchen.call(other, "sleep 20")) for other in others]
            began = time.perf_counter()
            busy = await median_ms(kitchen, ours)
            measured_in = time.perf_counter() - began
            assert not any(task.done() for task in sleeping), f"the others ended first, within {measured_in:.1f} s"
    ratio = busy / statistics.mean(idle)
    print(f"bash true ({driver}): idle {idle[0]:.2f} ms, with {OTHERS} idle sandboxes {idle[1]:.2f} ms; ", end="")
    print(f"while {OTHERS} sleep {busy:.2f} ms (in {measured_in:.1f} s): {ratio:.2f} times (at most {TARGET})")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(chosen_driver(__doc__))))
