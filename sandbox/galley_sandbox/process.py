"""Processes named so that a reused number fools nobody: number, start time and boot together."""

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from galley_sandbox.threads import to_end


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


def bearing(mark: bytes) -> list[ProcessName]:
    """Every process that was started with `mark` in its environment, as far as we may look."""
    found: list[ProcessName] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            marked = mark in (folder / "environ").read_bytes()
        except OSError:
            continue
        if marked and (name := name_of(int(folder.name))) is not None:
            found.append(name)
    return found


async def kill(process: ProcessName, *, within_s: float) -> bool:
    """Kill exactly this process and wait for its end. True: it is gone."""
    handle = await to_end(_killed, process)
    if handle is None:
        return True
    try:
        return await _ended(handle, within_s)
    finally:
        os.close(handle)


def _killed(process: ProcessName) -> int | None:
    """A handle on the process, which has been sent its end; None if it is gone already."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    try:
        # Looked at after it was opened: the handle stays with the process that was looked at.
        if is_alive(process):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return handle
    except ProcessLookupError:
        pass
    os.close(handle)
    return None


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
