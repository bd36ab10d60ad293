"""One server per home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from galley_server.errors import ConfigError
from galley_server.log.lock import HomeLock

HOLDER = """
import sys
from pathlib import Path
from galley_server.log.lock import HomeLock
with HomeLock.acquire(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_file_holds_the_pid_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with HomeLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_server_is_told_who_holds_the_home(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        HomeLock.acquire(path),
        pytest.raises(ConfigError, match=f"process {os.getpid()}.*GALLEY_HOME"),
        HomeLock.acquire(path),
    ):
        pass


def test_the_lock_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with HomeLock.acquire(path):
            pass


def test_a_killed_holder_leaves_the_home_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}"), HomeLock.acquire(path):
            pass
        holder.kill()
    with HomeLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with HomeLock.acquire(path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with child, HomeLock.acquire(path):
        child.communicate(b"\n")


def test_a_lock_file_that_cannot_be_opened_is_a_setting_gone_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"), HomeLock.acquire(tmp_path / "nowhere" / "lock"):
        pass
