"""Appends to a store for as long as it lives, saying `SESSION SEQ` for each row that was acknowledged."""

import asyncio
import sys
from pathlib import Path

from galley_server.ids import new_id

from tests.contract.store_kit import Kit, draft, open_kit

SESSIONS = 6


async def append_for_ever(kit: Kit, number: int) -> None:
    session_id = new_id("sesn")
    expected: int | None = 0
    while True:
        text = "large " * 20_000 if number == 0 else f"row {number}"
        rows = await kit.store.append(session_id, [draft(text=text), draft()], expected=expected)
        expected = None
        sys.stdout.write(f"{session_id} {rows[-1].seq}\n")
        sys.stdout.flush()


async def main(path: Path) -> None:
    async with open_kit(path) as kit, asyncio.TaskGroup() as tasks:
        for number in range(SESSIONS):
            tasks.create_task(append_for_ever(kit, number))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
