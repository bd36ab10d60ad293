"""The command that starts a sandbox with bubblewrap: put together here, run elsewhere. No I/O here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from galley_sandbox import staging
from galley_sandbox.port import WORKSPACE

HOME = "/home/agent"
SESSION_DIR = "/mnt/session"
TOOL_ID = 1000

_SHM_BYTES = 64 * 1024 * 1024

# As root: a mount name space of its own holds the sized disk, so that both end with the sandbox and nothing is left
# behind in the host's mount table. Then it joins its cgroups, gives up root and starts bubblewrap, detached.
ROOT_SCRIPT = """set -eu
base=$1 stage=$2 image=$3 size=$4 hand=$5 tool=$6 groups=$7
shift 7
mount -t tmpfs -o mode=755,size=64k galley "$base"
mkdir "$base/hand" "$base/disk"
mount --bind "$stage" "$base/hand"
if [ "$image" ]; then mount -o loop,nosuid,nodev,discard "$image" "$base/disk"
else mount -t tmpfs -o "nosuid,nodev,mode=755,size=$size" galley "$base/disk"
fi
cd "$base/disk"
mkdir workspace session home tmp
chmod 1777 tmp
chown "$tool:$tool" workspace home
chown "$hand:$hand" session
for group in $groups; do echo $$ > "$group/cgroup.procs"; done
setpriv --reuid "$hand" --regid "$hand" --clear-groups "$@" </dev/null &
"""

USER_SCRIPT = """set -eu
groups=$1
shift
for group in $groups; do echo $$ > "$group/cgroup.procs"; done
"$@" </dev/null &
"""

_SYSTEM_DIRS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DIRS = ("etc", "etc/ssl", "etc/pki", "etc/pki/tls", "etc/pki/ca-trust", "home", "mnt", "opt", "run", "var")
_ETC = (
    "alternatives",
    "ca-certificates",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "pki/tls/certs",
    "pki/ca-trust/extracted",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)


@dataclass(frozen=True, slots=True)
class TmpfsDisk:
    """No root, no loop device: the workspace is in memory, each part with a size."""

    size: int


@dataclass(frozen=True, slots=True)
class FolderDisk:
    """A bubblewrap too old to size a tmpfs: plain folders of the host, without a limit."""

    folder: Path


@dataclass(frozen=True, slots=True)
class MountedDisk:
    """A sized file system, mounted below `base` by the start script."""

    base: Path


Disk = TmpfsDisk | FolderDisk | MountedDisk


@dataclass(frozen=True, slots=True)
class SystemDir:
    """A top-level folder of the host that programs expect: a link into /usr, or a folder of its own."""

    name: str
    link: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    bubblewrap: str
    python: str
    stage: Path
    disk: Disk
    system: Sequence[SystemDir]
    extra_system: Sequence[Path]
    info_fd: int
    userns_block_fd: int | None  # set: somebody else writes the id maps, with two users; else all is one user
    seccomp_fd: int | None


def system_dirs(links: Mapping[str, str | None]) -> list[SystemDir]:
    """From what the host has: name to link target, or None for a real folder."""
    return [SystemDir(name, links[name]) for name in _SYSTEM_DIRS if name in links]


def arguments(plan: Plan) -> list[str]:
    """bubblewrap and all its arguments, the hand's command at the end."""
    two_users = plan.userns_block_fd is not None
    args = [plan.bubblewrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    args += ["--unshare-cgroup-try", "--hostname", "sandbox", "--as-pid-1", "--info-fd", str(plan.info_fd)]
    if two_users:
        args += ["--userns-block-fd", str(plan.userns_block_fd), "--uid", "0", "--gid", "0"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            args += ["--cap-add", capability]
    else:
        args += ["--uid", str(TOOL_ID), "--gid", str(TOOL_ID)]
    if plan.seccomp_fd is not None:
        args += ["--seccomp", str(plan.seccomp_fd)]
    args += _file_system(plan)
    args += ["--chdir", WORKSPACE, "--"]
    return [*args, plan.python, "-I", "-S", "-B", "-X", "utf8", staging.ENTRY]


def _file_system(plan: Plan) -> list[str]:
    # Made here and not on the way to what is below them, which would leave them open to the hand alone.
    args = [word for name in _DIRS for word in ("--dir", f"/{name}")]
    args += ["--ro-bind", "/usr", "/usr"]
    for entry in plan.system:
        if entry.link is None:
            args += ["--ro-bind", f"/{entry.name}", f"/{entry.name}"]
        else:
            args += ["--symlink", entry.link, f"/{entry.name}"]
    for path in plan.extra_system:
        args += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in ("passwd", "group", "hosts", "nsswitch.conf"):
        args += ["--ro-bind", str(plan.stage / "etc" / name), f"/etc/{name}"]
    args += ["--ro-bind", str(plan.stage), staging.IN_SANDBOX, "--proc", "/proc", "--dev", "/dev"]
    args += ["--symlink", "/tmp", "/var/tmp"]
    if not isinstance(plan.disk, FolderDisk):
        args += ["--size", str(_SHM_BYTES)]
    args += ["--tmpfs", "/dev/shm", *_disk(plan.disk)]
    if plan.userns_block_fd is not None:
        args += ["--chmod", "1777", "/dev/shm"]
    # What is left over is in memory and of no size, so nobody writes there.
    return [*args, "--remount-ro", "/dev", "--remount-ro", "/"]


def _disk(disk: Disk) -> list[str]:
    places = {"workspace": WORKSPACE, "session": SESSION_DIR, "home": HOME, "tmp": "/tmp"}
    args: list[str] = []
    for name, place in places.items():
        match disk:
            case MountedDisk(base=base):
                args += ["--bind", str(base / "disk" / name), place]
            case FolderDisk(folder=folder):
                args += ["--bind", str(folder / name), place]
            case TmpfsDisk(size=size):
                # One size for all together cannot be had: what is not the workspace gets a part of it.
                args += ["--size", str(size if name == "workspace" else size // 4), "--tmpfs", place]
    return args


def id_map(*, hand: int, tool: int) -> str:
    return f"0 {hand} 1\n{TOOL_ID} {tool} 1\n"


def environment(config: str) -> dict[str, str]:
    """All the hand starts with; what tools see is made from it."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "GALLEY_HAND_CONFIG": config,
    }
