"""What a sandbox's folder says about it: enough to find it and to end it after a restart of the server."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from galley_sandbox.port import Limits
from galley_sandbox.process import ProcessName

SOCKET = "hand.sock"
IMAGE = "disk.img"
LOG = "hand.log"
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class State:
    id: str
    home_id: str
    session_id: str
    incarnation: str
    limits: Limits
    process: ProcessName | None
    """None: its start was never completed."""


def write(folder: Path, state: State) -> None:
    """Whole or not at all, whatever happens in the middle."""
    draft = folder / f"{_STATE}.draft"
    draft.write_text(json.dumps(asdict(state), indent=1))
    draft.chmod(0o600)
    draft.replace(folder / _STATE)


def read(folder: Path) -> State | None:
    """None if there is none, or none that can be understood."""
    try:
        raw = json.loads((folder / _STATE).read_text())
        process = raw["process"]
        return State(
            id=raw["id"],
            home_id=raw["home_id"],
            session_id=raw["session_id"],
            incarnation=raw["incarnation"],
            limits=Limits(**raw["limits"]),
            process=ProcessName(**process) if process else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def log_tail(folder: Path) -> str:
    """The last thing that the start script or the hand had to say."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 600))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
