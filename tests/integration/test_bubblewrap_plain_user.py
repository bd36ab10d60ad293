"""Without root all of a sandbox is one user, and the hand is out of its tools' reach all the same."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import galley_sandbox
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

NOBODY = 65534

PROGRAM = r"""
import asyncio, json, sys
from pathlib import Path
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.port import Limits, MiB, Spec

LIMITS = Limits(memory_bytes=256 * MiB, disk_bytes=32 * MiB, pids=48, wall_s=20, cpu_s=1)

async def main():
    driver = Bubblewrap(Path(sys.argv[1]), "home_plain")
    out = {"probe": (await driver.probe()).detail}
    out["limits"] = {status.name: status.holds for status in await driver.limits_report()}
    sandbox = await driver.provision(Spec("sesn_plain", LIMITS))
    try:
        async with sandbox.connect() as hand:
            for name, command in json.loads(sys.stdin.read()).items():
                input = {"command": command, "timeout_ms": 5000} if command else {"restart": True}
                result = await hand.call(name, "bash", input, shell=name.partition(" ")[0])
                out[name] = result.text
        (adopted,) = await Bubblewrap(Path(sys.argv[1]), "home_plain").adopt()
        out["adopted"] = adopted.incarnation == sandbox.incarnation
    finally:
        await driver.destroy(sandbox.id)
    print(json.dumps(out))

asyncio.run(main())
"""


def runs(python: str) -> bool:
    check = [*as_nobody(), python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    return subprocess.run(check, capture_output=True, check=False, cwd="/").returncode == 0


def as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A place that a plain user can read, with the package in it."""
    folder = Path(tempfile.mkdtemp(prefix="galley-plain-"))
    shutil.copytree(Path(galley_sandbox.__file__).parent, folder / "galley_sandbox")
    (folder / "home").mkdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "home").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


async def run(folder: Path, commands: dict[str, str]) -> dict[str, Any]:
    python = next(path for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3") if runs(path))
    process = await asyncio.create_subprocess_exec(
        *[*as_nobody(), python, "-B", "-c", PROGRAM, str(folder / "home" / "sandboxes")],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/bin", "PYTHONPATH": str(folder)},
        cwd="/",
    )
    async with asyncio.timeout(60):
        out, complaint = await process.communicate(json.dumps(commands).encode())
    assert process.returncode == 0, complaint.decode()
    result: dict[str, Any] = json.loads(out)
    return result


async def test_the_hand_holds_against_processes_of_its_own_user(open_folder: Path) -> None:
    attack = (
        "for number in KILL TERM STOP USR1 SEGV; do kill -$number 1; done; "
        "cat /proc/1/environ /proc/1/maps /proc/1/mem; ls /proc/1/fd /proc/1/root; "
        "prlimit --pid 1 --nofile=3:3; echo 1000 > /proc/1/oom_score_adj; "
        "touch /x /dev/x /opt/galley/x; unshare -Ur true; "
        "python3 -c 'import ctypes; c = ctypes.CDLL(None); print([c.ptrace(16, 1, 0, 0), c.syscall(434, 1, 0)])'"
    )
    steal = (
        "python3 -c 'import ctypes; c = ctypes.CDLL(None); p = c.syscall(434, 1, 0); "
        "print({c.syscall(438, p, fd, 0) for fd in range(64)})'"
    )
    out = await run(
        open_folder,
        {
            "main 1": f"({attack}) 2>/dev/null | head -c 200; id -u",
            "main 2": f"{steal}; cat /proc/net/unix | tail -n +2",
            "wild 1": "kill -9 -1",
            "wild 2": "",
            "wild 3": "echo alive",
        },
    )
    assert out["main 1"].startswith("[-1, ")
    assert out["main 1"].endswith("\n1000")
    assert out["main 2"].splitlines()[0] == "{-1}"
    assert out["wild 3"] == "alive"
    assert out["adopted"]


async def test_limits_hold_as_far_as_they_are_said_to(open_folder: Path) -> None:
    out = await run(
        open_folder,
        {
            "main 1": "python3 -c 'x = bytearray(400 * 1024 * 1024)'",
            "main 2": "dd if=/dev/zero of=fill bs=1M count=100",
            "main 3": "rm fill; for i in $(seq 200); do sleep 1234 & done; wait",
            "main 4": "",
            "main 5": "pgrep -c -x sleep; sh -c 'while :; do :; done'",
            "main 6": "echo alive",
        },
    )
    limits = out["limits"]
    assert out["main 1"].startswith("resource_limit_exceeded: memory")
    assert out["main 2"].startswith("resource_limit_exceeded: disk") == limits["disk"]
    assert out["main 3"].startswith("resource_limit_exceeded: pids") == limits["pids"]
    assert out["main 5"].startswith("resource_limit_exceeded: cpu_time\n0")
    assert out["main 6"] == "alive"
