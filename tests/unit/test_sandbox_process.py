"""A process is known by more than its number."""

import asyncio
import os
import sys
from dataclasses import replace

import pytest
from galley_sandbox import process

pytestmark = pytest.mark.anyio


async def test_a_living_process_is_named_and_killed() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    name = process.name_of(child.pid)
    assert name is not None
    assert process.is_alive(name)
    assert await process.kill(name, within_s=5)
    await child.wait()
    assert not process.is_alive(name)
    assert await process.kill(name, within_s=5)


async def test_a_reused_number_fools_nobody() -> None:
    own = process.name_of(os.getpid())
    assert own is not None
    earlier = replace(own, started=own.started - 1)
    assert not process.is_alive(earlier)
    assert await process.kill(earlier, within_s=5), "gone already, and we are still here"


async def test_another_boot_is_another_process() -> None:
    own = process.name_of(os.getpid())
    assert own is not None
    assert not process.is_alive(replace(own, boot="another"))


def test_nobody_has_no_name() -> None:
    assert process.name_of(2**22 + 1) is None
