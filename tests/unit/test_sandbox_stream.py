"""The byte stream to a hand: whatever loop it runs on, a broken one is an OSError."""

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from galley_sandbox.stream import open_unix_stream

Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Loop:
    made: Loop = request.param
    return made


async def write_after_the_other_end_is_gone(listener: socket.socket, path: str) -> None:
    async with asyncio.timeout(10), open_unix_stream(path) as stream:
        listener.setblocking(False)
        other, _ = await asyncio.get_running_loop().sock_accept(listener)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        for _ in range(3):  # the first may still get away
            with pytest.raises(OSError):  # noqa: PT012
                while True:
                    await stream.write(bytes(100_000))


def test_writing_to_a_stream_that_broke_is_an_os_error_each_time(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, asyncio.Runner(loop_factory=loop) as runner:
        listener.bind(path)
        listener.listen()
        runner.run(write_after_the_other_end_is_gone(listener, path))
