"""Control groups: which are found, and what is set in them."""

from pathlib import Path

import pytest
from galley_sandbox.bubblewrap import cgroups
from galley_sandbox.bubblewrap.cgroups import Hierarchy
from galley_sandbox.port import Limits, MiB

VERSION_1 = """\
30 29 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 29 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 29 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
VERSION_2 = "30 29 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
LIMITS = Limits(memory_bytes=100 * MiB, cpus=1.5, pids=10)


def test_version_1_has_a_folder_for_each_controller() -> None:
    found = cgroups.find(VERSION_1, "0::/\n", 0)
    assert found == Hierarchy(
        1,
        {
            "memory": Path("/sys/fs/cgroup/memory"),
            "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
            "pids": Path("/sys/fs/cgroup/pids"),
        },
    )


def test_version_2_has_one_folder_for_all() -> None:
    found = cgroups.find(VERSION_2, "0::/system.slice/ssh.service\n", 0)
    assert found is not None
    assert found.groups("sbx_1") == [Path("/sys/fs/cgroup/galley/sbx_1")]


def test_a_plain_user_is_looked_for_below_the_own_service_manager() -> None:
    own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/term.scope\n"
    found = cgroups.find(VERSION_2, own, 1000)
    assert found is not None
    assert found.folders["memory"] == Path("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service")


def test_without_a_mount_nothing_is_found_and_the_reason_is_told() -> None:
    assert cgroups.find("1 0 8:1 / / rw - ext4 /dev/sda rw\n", "", 0) is None
    missing = cgroups.prepare(None).missing
    assert missing == dict.fromkeys(cgroups.CONTROLLERS, "no cgroup file system is mounted")


@pytest.mark.parametrize(
    ("version", "controller", "expected"),
    [
        (1, "memory", {"memory.limit_in_bytes": "104857600", "memory.memsw.limit_in_bytes": "104857600"}),
        (1, "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}),
        (1, "pids", {"pids.max": "26"}),
        (2, "memory", {"memory.max": "104857600", "memory.swap.max": "0", "memory.oom.group": "0"}),
        (2, "cpu", {"cpu.max": "150000 100000"}),
        (2, "pids", {"pids.max": "26"}),
    ],
)
def test_limits_are_written_where_the_kernel_has_a_file_for_them(
    tmp_path: Path, version: int, controller: str, expected: dict[str, str]
) -> None:
    group = tmp_path / "galley" / "sbx_1"
    group.mkdir(parents=True)
    for name in expected:
        (group / name).touch()
    assert cgroups.create(Hierarchy(version, {controller: tmp_path}), "sbx_1", LIMITS) == [group]
    assert {name: (group / name).read_text() for name in expected} == expected


def test_a_kernel_without_swap_accounting_is_no_error(tmp_path: Path) -> None:
    group = tmp_path / "galley" / "sbx_1"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").touch()
    cgroups.create(Hierarchy(1, {"memory": tmp_path}), "sbx_1", LIMITS)
    assert not (group / "memory.memsw.limit_in_bytes").exists()


def test_groups_are_removed_once_and_again(tmp_path: Path) -> None:
    hierarchy = Hierarchy(2, {"pids": tmp_path})
    (tmp_path / "galley" / "sbx_1").mkdir(parents=True)
    assert cgroups.remove(hierarchy, "sbx_1")
    assert cgroups.remove(hierarchy, "sbx_1")
    assert not (tmp_path / "galley" / "sbx_1").exists()
