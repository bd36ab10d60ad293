"""Processes named so that a reused number fools nobody: number, start time and boot together."""

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessName:
    pid: int
    started: int  # clock ticks after boot
    boot: str


def name_of(pid: int) -> ProcessName | None:
    """The process that has this number now, if it lives."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ProcessName(pid=pid, started=int(fields[19]), boot=boot)


def is_alive(process: ProcessName) -> bool:
    return name_of(process.pid) == process


async def kill(process: ProcessName, *, within_s: float) -> bool:
    """Kill exactly this process and wait for its end. True: it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        # Looked at after it was opened: the handle stays with the process that was looked at.
        if not is_alive(process):
            return True
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return await _ended(handle, within_s)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


async def _ended(handle: int, within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(handle, gone.set)
    try:
        async with asyncio.timeout(within_s):
            await gone.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
    return True
