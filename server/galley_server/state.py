"""The files of a home. Names only, no I/O."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StateFiles:
    home: Path

    @property
    def database(self) -> Path:
        return self.home / "galley.db"

    @property
    def chain_key(self) -> Path:
        """Kept apart from the database: who can write only that cannot sign."""
        return self.home / "log_key"

    @property
    def api_key(self) -> Path:
        return self.home / "api_key"

    @property
    def home_id(self) -> Path:
        """What this home's sandboxes are marked with."""
        return self.home / "home_id"

    @property
    def lock(self) -> Path:
        return self.home / "server.lock"

    @property
    def sandboxes(self) -> Path:
        """What the drivers keep on this machine."""
        return self.home / "sandboxes"

    @property
    def uploads(self) -> Path:
        """The contents of files, each named by its hash."""
        return self.home / "files"
