"""Control groups, version 1 and 2, as far as a sandbox without an engine needs them."""

import errno
import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from galley_sandbox.port import Limits

_NAME = "galley"
# The hand, its keepers and the outer helper count too, and must not be starved by what tools start.
PID_RESERVE = 16
_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups of ours are made: one folder for all controllers (version 2) or one for each (version 1)."""

    version: int
    folders: Mapping[str, Path]

    def groups(self, sandbox_id: str) -> list[Path]:
        return [folder / _NAME / sandbox_id for folder in dict.fromkeys(self.folders.values())]


@dataclass(frozen=True, slots=True)
class Found:
    hierarchy: Hierarchy | None
    missing: Mapping[str, str]
    """Controllers that cannot be used, each with the reason."""


CONTROLLERS = ("memory", "pids", "cpu")


def find(mountinfo: str, own: str, user: int) -> Hierarchy | None:
    """From /proc/self/mountinfo and /proc/self/cgroup. Version 1 wins where it holds controllers (a hybrid)."""
    version_1: dict[str, Path] = {}
    version_2: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, *rest = after.split()
        path = Path(before.split()[4])
        if kind == "cgroup2" and version_2 is None:
            version_2 = path
        elif kind == "cgroup" and rest:
            options = set(rest[-1].split(","))
            for controller in CONTROLLERS:
                if controller in options:
                    version_1.setdefault(controller, path)
    if version_1:
        return Hierarchy(1, version_1)
    if version_2 is not None:
        return Hierarchy(2, dict.fromkeys(CONTROLLERS, version_2 / _delegated(own, user)))
    return None


def _delegated(own: str, user: int) -> str:
    """Where a plain user may make groups in version 2: below the user's own service manager, if we run there."""
    if user == 0:
        return ""
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "/")
    before, manager, _ = path.partition(f"/user@{user}.service")
    return (before + manager).lstrip("/") if manager else path.lstrip("/")


def prepare(hierarchy: Hierarchy | None) -> Found:
    """Find out, by making a group and removing it, which controllers are ours to use."""
    if hierarchy is None:
        return Found(None, dict.fromkeys(CONTROLLERS, "no cgroup file system is mounted"))
    usable: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for controller in CONTROLLERS:
        folder = hierarchy.folders.get(controller)
        if folder is None:
            missing[controller] = f"the {controller} controller is not mounted"
            continue
        try:
            if hierarchy.version == 2:
                _delegate(folder, controller)
            _try(folder / _NAME / f"trial-{secrets.token_hex(6)}")
        except OSError as e:
            missing[controller] = f"cgroups cannot be made or joined here ({e.strerror})"
        else:
            usable[controller] = folder
    return Found(Hierarchy(hierarchy.version, usable) if usable else None, missing)


def _try(group: Path) -> None:
    """Make a group, put a process into it, remove it."""
    group.mkdir(parents=True)
    try:
        join = ["sh", "-c", 'echo $$ > "$1"', "sh", str(group / "cgroup.procs")]
        done = subprocess.run(join, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
        if done.returncode != 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    finally:
        group.rmdir()


def _delegate(folder: Path, controller: str) -> None:
    """Version 2: a controller has to be passed down at each level."""
    own = folder / _NAME
    own.mkdir(exist_ok=True)
    for level in (folder, own):
        enabled = (level / "cgroup.subtree_control").read_text().split()
        if controller not in enabled:
            (level / "cgroup.subtree_control").write_text(f"+{controller}")


def create(hierarchy: Hierarchy, sandbox_id: str, limits: Limits) -> list[Path]:
    """Make a sandbox's groups with its limits set; return the folders to join."""
    for controller, folder in hierarchy.folders.items():
        group = folder / _NAME / sandbox_id
        group.mkdir(parents=True, exist_ok=True)
        for name, value in _settings(hierarchy.version, controller, limits).items():
            target = group / name
            # Swap accounting, above all, is often left out of a kernel; then there is nothing to limit.
            if target.exists():
                target.write_text(value)
    return hierarchy.groups(sandbox_id)


def _settings(version: int, controller: str, limits: Limits) -> dict[str, str]:
    memory, pids = str(limits.memory_bytes), str(limits.pids + PID_RESERVE)
    quota = str(max(1000, int(limits.cpus * _PERIOD_US)))
    match version, controller:
        case 1, "memory":
            return {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}
        case 1, "cpu":
            return {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": quota}
        case 2, "memory":
            return {"memory.max": memory, "memory.swap.max": "0", "memory.oom.group": "0"}
        case 2, "cpu":
            return {"cpu.max": f"{quota} {_PERIOD_US}"}
        case _:
            return {"pids.max": pids}


@dataclass(frozen=True, slots=True)
class Gauge:
    """Where the kernel counts how often a limit was hit."""

    path: Path
    key: str


def memory_gauge(hierarchy: Hierarchy, sandbox_id: str) -> Gauge | None:
    folder = hierarchy.folders.get("memory")
    name = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
    return Gauge(folder / _NAME / sandbox_id / name, "oom_kill") if folder else None


def pids_gauge(hierarchy: Hierarchy, sandbox_id: str) -> Gauge | None:
    folder = hierarchy.folders.get("pids")
    return Gauge(folder / _NAME / sandbox_id / "pids.events", "max") if folder else None


def remove(hierarchy: Hierarchy, sandbox_id: str) -> bool:
    """Remove a sandbox's empty groups. False: somebody is still in one."""
    for group in hierarchy.groups(sandbox_id):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
