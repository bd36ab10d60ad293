"""What every sandbox keeps apart: tools from the hand, from the host, from the network, from each other."""

import asyncio
import os
from pathlib import Path

import pytest
from galley_sandbox.port import (
    Hand,
)

from tests.contract.sandbox_kit import (
    bash,
    use,
)

pytestmark = pytest.mark.anyio


async def test_there_is_no_network_but_loopback(hand: Hand) -> None:
    interfaces = (await bash(hand, "ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1")).text
    assert interfaces.split() == ["lo"]
    script = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    assert "Network is unreachable" in (await bash(hand, f'python3 -c "{script}"')).text
    serve = "import socket; a = socket.create_server(('127.0.0.1', 0)); socket.create_connection(a.getsockname())"
    assert not (await bash(hand, f'python3 -c "{serve}"')).is_error


ATTACKS = """
import ctypes, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, action):
    try:
        action()
    except OSError:
        return
    print("got through:", name)

def ptrace():
    if libc.ptrace(16, 1, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def stolen_fd():
    number = libc.syscall(434, 1, 0)
    for fd in range(64):
        if libc.syscall(438, number, fd, 0) >= 0:
            return
    raise OSError

for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1, signal.SIGSEGV):
    try:
        os.kill(1, number)
    except OSError:
        pass
attempt("ptrace", ptrace)
attempt("environ", lambda: open("/proc/1/environ").read())
attempt("memory", lambda: open("/proc/1/mem", "rb+").read(1))
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("descriptors", lambda: os.listdir("/proc/1/fd"))
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("stolen descriptor", stolen_fd)
attempt("limits", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)))
attempt("memory score", lambda: open("/proc/1/oom_score_adj", "w").write("1000"))
for name in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/opt/galley/galley_sandbox/start_hand.py"):
    attempt(name, lambda: open(name, "r+"))
attempt("become root", lambda: os.setuid(0))

def sockets(folder):
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(parent, name)

def knock(path):
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)

for folder in ("/run", "/tmp", "/var", "/mnt", "/opt", "/dev", "/home"):
    for path in sockets(folder):
        attempt("socket " + path, lambda: knock(path))
for line in open("/proc/net/unix").read().splitlines()[1:]:
    words = line.split()
    if len(words) == 8:
        attempt("socket " + words[7], lambda: knock(words[7].replace("@", chr(0), 1)))
print("over")
"""


async def test_tools_cannot_touch_the_hand(hand: Hand) -> None:
    await use(hand, "write", {"file_path": "attack.py", "content": ATTACKS})
    assert (await bash(hand, "python3 attack.py")).text == "over"
    assert (await bash(hand, "echo alive")).text == "alive"


async def test_a_forked_worker_is_as_untouchable_as_the_hand(hand: Hand) -> None:
    spy = "for p in /proc/[0-9]*; do [ $(cut -d' ' -f4 $p/stat) = 1 ] && cat $p/environ $p/maps; done 2>/dev/null"
    async with asyncio.TaskGroup() as tasks:
        await bash(hand, "mkdir -p many; cd many; for i in $(seq 300); do echo $i > $i; done; cd ..")
        tasks.create_task(use(hand, "grep", {"pattern": "(a|b|c)+x"}))
        spied = tasks.create_task(bash(hand, f"for i in 1 2 3 4 5; do {spy}; done | head -c 1"))
    assert spied.result().text == ""


async def test_the_host_is_out_of_sight(hand: Hand, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    assert (await bash(hand, f"cat {tmp_path}/secret")).is_error
    assert (await bash(hand, f"kill -0 {os.getpid()}")).is_error
    assert "docker" not in (await bash(hand, "ls /root /home /var/lib /boot")).text
    assert (await bash(hand, "ls /dev | grep -E '^(sd|vd|loop|mem|kmsg)'")).text == ""


async def test_tools_have_no_privileges(hand: Hand) -> None:
    status = (await bash(hand, "grep -E '^(CapEff|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status; id -u")).text.split()
    assert status[1] == status[3] == "0000000000000000"
    assert (status[5], status[7]) == ("1", "2")
    assert status[8] != "0"
    assert (await bash(hand, "unshare -Ur true")).is_error
    assert (await bash(hand, "mount -t tmpfs none /tmp")).is_error
