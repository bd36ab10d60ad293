"""What a hand is told when it is started: who it is, where it listens, whom it runs tools as, and the limits."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Gauge(NamedTuple):
    """A file in which the kernel counts how often a limit was hit, given by path or as an inherited descriptor."""

    path: str
    fd: int
    key: str


class Config(NamedTuple):
    incarnation: str
    listen_fd: int  # an inherited listening socket, or -1
    listen_path: str  # where to listen otherwise
    tool_uid: int  # -1: tools run as the hand's own user
    tool_gid: int
    home: str
    workspace: str
    session_dir: str
    idle_exit_s: float
    wall_s: float
    output_bytes: int
    cpu_s: int
    max_processes: int  # 0: the kernel cannot count them for us here
    max_address_space: int  # 0: a cgroup bounds memory
    max_file_size: int  # 0: the disk is bounded
    memory_gauge: Gauge
    pids_gauge: Gauge

    @property
    def uploads(self) -> str:
        return self.session_dir + "/uploads"

    @property
    def outputs(self) -> str:
        return self.session_dir + "/outputs"

    @property
    def tool_results(self) -> str:
        """Where output too long for a result is kept for the model to read."""
        return self.session_dir + "/tool_results"


def parse(text: str) -> Config:
    raw: dict[str, Any] = json.loads(text)
    raw["memory_gauge"] = Gauge(*raw["memory_gauge"])
    raw["pids_gauge"] = Gauge(*raw["pids_gauge"])
    return Config(**raw)


def render(config: Config) -> str:
    return json.dumps(config._asdict())
