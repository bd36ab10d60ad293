"""How a sandbox looks as a container: its settings, labels, places. No I/O here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from galley_sandbox import staging
from galley_sandbox.hand.config import Config, Gauge, render
from galley_sandbox.port import WORKSPACE, Limits

HOME = "/home/agent"
SESSION_DIR = "/mnt/session"
SOCKET = "/run/galley/hand.sock"
# The hand, its keepers and the bridges to it count too, and must not be starved by what tools start.
PID_RESERVE = 16
PYTHON = ["python3", "-I", "-S", "-B", "-X", "utf8", staging.ENTRY]

LABEL_HOME = "dev.galley.home"
_LABEL_SESSION = "dev.galley.session"
_LABEL_INCARNATION = "dev.galley.incarnation"
_LABEL_LIMITS = "dev.galley.limits"
_FIRST_TOOL_ID = 10_000
_TOOL_IDS = 50_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose container it is; all of it is in its labels."""

    id: str
    home_id: str
    session_id: str
    incarnation: str
    limits: Limits

    def labels(self) -> dict[str, str]:
        return {
            LABEL_HOME: self.home_id,
            _LABEL_SESSION: self.session_id,
            _LABEL_INCARNATION: self.incarnation,
            _LABEL_LIMITS: json.dumps(asdict(self.limits)),
        }


def identity_of(name: str, labels: Mapping[str, str]) -> Identity | None:
    """None if the labels are not those of a sandbox."""
    try:
        return Identity(
            id=name.removeprefix("/"),
            home_id=labels[LABEL_HOME],
            session_id=labels[_LABEL_SESSION],
            incarnation=labels[_LABEL_INCARNATION],
            limits=Limits(**json.loads(labels[_LABEL_LIMITS])),
        )
    except (KeyError, ValueError, TypeError):
        return None


def tool_id(sandbox_id: str) -> int:
    """A user of this sandbox alone: without user name spaces the kernel counts a user's processes machine-wide."""
    return _FIRST_TOOL_ID + int.from_bytes(hashlib.sha256(sandbox_id.encode()).digest()[:4]) % _TOOL_IDS


def workspace_bytes(limits: Limits) -> int:
    """The disk is in memory here, so it has to leave room for what runs."""
    return min(limits.disk_bytes, limits.memory_bytes // 2)


def _tmpfs(user: int, limits: Limits) -> dict[str, str]:
    size = workspace_bytes(limits)
    common = "rw,nosuid,nodev,exec"
    own = f"mode=755,uid={user},gid={user}"
    return {
        WORKSPACE: f"{common},{own},size={size}",
        HOME: f"{common},{own},size={size // 8}",
        SESSION_DIR: f"{common},mode=755,size={size // 4}",
        "/tmp": f"{common},mode=1777,size={size // 4}",
        # Only the container's root gets in here, and that is the hand and the bridges to it.
        "/run/galley": "rw,nosuid,nodev,noexec,mode=700,size=64k",
    }


def gauges(cgroup_version: int) -> tuple[Gauge, Gauge]:
    if cgroup_version == 1:
        folder = "/sys/fs/cgroup"
        return (
            Gauge(f"{folder}/memory/memory.oom_control", -1, "oom_kill"),
            Gauge(f"{folder}/pids/pids.events", -1, "max"),
        )
    return Gauge("/sys/fs/cgroup/memory.events", -1, "oom_kill"), Gauge("/sys/fs/cgroup/pids.events", -1, "max")


def hand_config(identity: Identity, cgroup_version: int, idle_exit_s: float) -> Config:
    limits, user = identity.limits, tool_id(identity.id)
    memory_gauge, pids_gauge = gauges(cgroup_version)
    return Config(
        incarnation=identity.incarnation,
        listen_fd=-1,
        listen_path=SOCKET,
        tool_uid=user,
        tool_gid=user,
        home=HOME,
        workspace=WORKSPACE,
        session_dir=SESSION_DIR,
        idle_exit_s=idle_exit_s,
        wall_s=limits.wall_s,
        output_bytes=limits.output_bytes,
        cpu_s=max(1, int(limits.cpu_s)),
        max_processes=limits.pids,
        max_address_space=0,
        max_file_size=0,
        memory_gauge=memory_gauge,
        pids_gauge=pids_gauge,
    )


def carrier_settings(name: str, home_id: str, *, image: str, volume: str) -> dict[str, Any]:
    """The arguments of `containers.create` for a container that only holds the volume while files are put into it."""
    return {
        "image": image,
        "name": name,
        "entrypoint": ["true"],
        "network_mode": "none",
        "labels": {LABEL_HOME: home_id},
        "mounts": [_mount(volume, read_only=False)],
    }


def _mount(volume: str, *, read_only: bool) -> dict[str, str | bool]:
    """The volume with the hand's files, where the hand is started from."""
    return {"Type": "volume", "Source": volume, "Target": staging.IN_SANDBOX, "ReadOnly": read_only}


def settings(identity: Identity, config: Config, *, image: str, volume: str, runtime: str | None) -> dict[str, Any]:
    """The arguments of docker-py's `containers.create`."""
    limits = identity.limits
    return {
        "image": image,
        "name": identity.id,
        "entrypoint": PYTHON,
        "command": [],
        "user": "0:0",
        "hostname": "sandbox",
        "working_dir": "/",
        "environment": {
            "GALLEY_HAND_CONFIG": render(config),
            "HOME": HOME,
            "USER": "agent",
            "LOGNAME": "agent",
            "SHELL": "/bin/bash",
        },
        "labels": identity.labels(),
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "cap_add": ["SETUID", "SETGID", "KILL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": _tmpfs(config.tool_uid, limits),
        "mounts": [_mount(volume, read_only=True)],
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,
        "nano_cpus": int(limits.cpus * 1_000_000_000),
        "pids_limit": limits.pids + PID_RESERVE,
        "ipc_mode": "private",
        # The hand says nothing unless it fails, and then once.
        "log_config": {"type": "json-file", "config": {"max-size": "64k", "max-file": "1"}},
        "runtime": runtime,
        "detach": True,
    }
