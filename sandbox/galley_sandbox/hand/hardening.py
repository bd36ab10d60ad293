"""What keeps tool processes off the hand: no dumps, no tracing, no privileges, the first to go when memory is short."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galley_sandbox.hand.config import Config

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def shield_self() -> None:
    """Make the hand untouchable for processes of its own user too.

    Not dumpable: no ptrace, and /proc/1/{mem,environ,fd} belong to nobody in here.
    As PID 1 of its namespace it gets no signal from within that it does not handle, so it handles none.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def become_keeper() -> None:
    """Adopt the orphans among our descendants, so that a daemon cannot slip away from its shell."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become_tool(config: Config, *, cpu_s: int) -> None:
    """Turn this freshly forked child into a process that may do what a tool may."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # numbers the C library keeps to itself
    _raise_oom_score()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, cpu_s)
    if config.max_processes:
        _limit(resource.RLIMIT_NPROC, config.max_processes)
    if config.max_address_space:
        _limit(resource.RLIMIT_AS, config.max_address_space)
    if config.max_file_size:
        _limit(resource.RLIMIT_FSIZE, config.max_file_size)
    if config.tool_uid >= 0:
        os.setgroups([])
        os.setresgid(config.tool_gid, config.tool_gid, config.tool_gid)
        os.setresuid(config.tool_uid, config.tool_uid, config.tool_uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o022)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    # For CPU the soft limit ends the process with SIGXCPU, by which it is told apart; the hard one is the safety net.
    ceiling = value + 5 if which == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else value
    resource.setrlimit(which, (value, ceiling))


def _raise_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        return  # some runtimes have no such file; then they have no such killer either
