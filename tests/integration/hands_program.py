"""A server reduced to its hands, to be killed: runs one call, and prints its incarnation once the call has begun.

python -m tests.integration.hands_program DRIVER FOLDER HOME_ID SESSION_ID CALL_ID COMMAND
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Collection
from itertools import count
from pathlib import Path

from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker
from galley_sandbox.port import Driver
from galley_server.hands.port import ToolCall
from galley_server.hands.sandboxes import SandboxHands


class NoFiles:
    async def content(self, file_id: str) -> AsyncIterator[bytes]:
        yield b""


class Everyone:
    async def alive(self, session_ids: Collection[str]) -> Collection[str]:
        return session_ids


def driver_of(name: str, folder: Path, home_id: str) -> Driver:
    return Docker(home_id) if name == "docker" else Bubblewrap(folder, home_id)


async def main(name: str, folder: str, home_id: str, session_id: str, call_id: str, command: str) -> None:
    driver = driver_of(name, Path(folder), home_id)
    async with SandboxHands.open([driver], sessions=Everyone(), files=NoFiles()) as hands:
        incarnation = await hands.incarnation(session_id, [])
        async with asyncio.TaskGroup() as tasks:
            call = ToolCall(call_id, "bash", {"command": command})
            tasks.create_task(hands.execute(session_id, call, incarnation))
            for number in count():
                look = ToolCall(f"look_{number}", "read", {"file_path": "begun"})
                if not (await hands.execute(session_id, look, incarnation)).is_error:
                    break
            sys.stdout.write(incarnation + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
