"""What this machine offers to sandboxes without an engine, found out once, and which limits hold by it."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from galley_sandbox.bubblewrap import cgroups
from galley_sandbox.errors import SandboxUnavailable
from galley_sandbox.port import LimitStatus

_INSTALL = "install it: apt-get install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora)"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT_BASES = ("/mnt", "/media", "/srv", "/opt")
_SIZED_TMPFS_SINCE = (0, 7)


@dataclass(frozen=True, slots=True)
class Host:
    bubblewrap: str
    version: tuple[int, ...]
    python: str
    machine: str
    is_root: bool
    mkfs: str | None
    mount_base: Path
    system_links: Mapping[str, str | None]
    extra_system: tuple[Path, ...]
    groups: cgroups.Found
    counts_processes: bool
    """Whether a limit on processes is counted per name space, not per user of the whole machine."""

    @property
    def hierarchy(self) -> cgroups.Hierarchy | None:
        return self.groups.hierarchy

    @property
    def sizes_tmpfs(self) -> bool:
        return self.version >= _SIZED_TMPFS_SINCE

    def has(self, controller: str) -> bool:
        return self.hierarchy is not None and controller in self.hierarchy.folders


def inspect() -> Host:
    """Blocking. Raises SandboxUnavailable if bubblewrap cannot be used at all."""
    if platform.system() != "Linux":
        raise SandboxUnavailable("bubblewrap exists on Linux only.", fix="install Docker and start it")
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxUnavailable("bubblewrap (bwrap) is not installed.", fix=_INSTALL)
    python = shutil.which("python3", path=_SYSTEM_PATH)
    if python is None or shutil.which("bash", path=_SYSTEM_PATH) is None:
        raise SandboxUnavailable(
            "A sandbox with bubblewrap runs on this machine's own python3 and bash, and one of them is missing.",
            fix="install python3 (3.8 or newer) and bash with the system's package manager",
        )
    is_root = os.geteuid() == 0
    if is_root:
        _check_root_tools()
    return Host(
        bubblewrap=bubblewrap,
        version=_version(bubblewrap),
        python=python,
        machine=platform.machine(),
        is_root=is_root,
        mkfs=shutil.which("mkfs.ext4", path=_SYSTEM_PATH) if is_root and _can_mount_images() else None,
        mount_base=next((Path(name) for name in _MOUNT_BASES if Path(name).is_dir()), Path("/tmp")),
        system_links=_system_links(),
        extra_system=_outside_usr(python),
        groups=cgroups.prepare(_hierarchy()),
        counts_processes=_kernel() >= (5, 14),
    )


def _check_root_tools() -> None:
    for tool in ("unshare", "setpriv", "mount"):
        if shutil.which(tool) is None:
            raise SandboxUnavailable(f"As root, sandboxes need `{tool}`.", fix="install util-linux and mount")


def _can_mount_images() -> bool:
    """Really mount a small one, in a name space of its own: a container often has no loop devices."""
    script = (
        'set -eu; mount -t tmpfs galley "$1"; cd "$1"; truncate -s 4M image; mkfs.ext4 -q -F image; '
        "mkdir disk; mount -o loop image disk"
    )
    base = next((name for name in _MOUNT_BASES if Path(name).is_dir()), "/tmp")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "galley", base]
    done = subprocess.run(
        command,
        env={"PATH": _SYSTEM_PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    return done.returncode == 0


def _hierarchy() -> cgroups.Hierarchy | None:
    own = Path("/proc/self")
    return cgroups.find((own / "mountinfo").read_text(), (own / "cgroup").read_text(), os.geteuid())


def _version(bubblewrap: str) -> tuple[int, ...]:
    said = subprocess.run([bubblewrap, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said))


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


def _system_links() -> dict[str, str | None]:
    links: dict[str, str | None] = {}
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/") / name
        if path.is_symlink():
            links[name] = os.readlink(path)
        elif path.is_dir():
            links[name] = None
    return links


def _outside_usr(python: str) -> tuple[Path, ...]:
    """Where python really lives, if that is not below /usr: some systems keep each program in a place of its own."""
    real = Path(python).resolve()
    return () if real.is_relative_to("/usr") or real.is_relative_to("/bin") else (real.parent.parent,)


def limits_report(host: Host) -> list[LimitStatus]:
    missing = host.groups.missing
    return [
        LimitStatus("memory", True, "memory cgroup")
        if host.has("memory")
        else LimitStatus("memory", False, f"{missing['memory']}; each process alone is bounded (address space)"),
        LimitStatus("cpus", True, "cpu cgroup") if host.has("cpu") else LimitStatus("cpus", False, missing["cpu"]),
        LimitStatus("cpu_time", True, "a resource limit on each process"),
        _pids_status(host),
        _disk_status(host),
        LimitStatus("wall_time", True, "the hand's clock"),
        LimitStatus("output", True, "counted by the hand"),
        LimitStatus("network", True, "a network name space with loopback alone"),
    ]


def _pids_status(host: Host) -> LimitStatus:
    if host.has("pids"):
        return LimitStatus("pids", True, "pids cgroup")
    if host.counts_processes:
        return LimitStatus("pids", True, "a resource limit on the sandbox's own user")
    return LimitStatus("pids", False, f"{host.groups.missing['pids']}, and the kernel is older than 5.14")


def _disk_status(host: Host) -> LimitStatus:
    if host.is_root and host.mkfs:
        return LimitStatus("disk", True, "a sized file system in a file")
    if host.is_root or host.sizes_tmpfs:
        return LimitStatus("disk", True, "a sized file system in memory, at most half of the memory limit")
    return LimitStatus("disk", False, "this bubblewrap cannot size its file systems; 0.7 can")
