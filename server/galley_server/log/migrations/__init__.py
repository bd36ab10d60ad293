"""The store's schema as numbered steps. A released step is never edited; what changes is another step."""

import re
import sqlite3
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from galley_server.errors import ConfigError

# "GALY": tells a Galley store from any other SQLite file, also to file(1).
APPLICATION_ID: Final = 0x47414C59

_NAME: Final = re.compile(r"^([0-9]{4})_([a-z_]+)\.sql$")


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str


@cache
def migrations() -> tuple[Migration, ...]:
    """Return every step, in order, numbered 1, 2, 3, ..."""
    found = []
    for file in files(__name__).iterdir():
        match = _NAME.match(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    found.sort(key=lambda step: step.number)
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise ConfigError(f"the migrations are not numbered 1 to {len(found)}: {[step.number for step in found]}")
    return tuple(found)


def migrate(connection: sqlite3.Connection, *, name: str, steps: tuple[Migration, ...] | None = None) -> None:
    """Bring a new or older store up to date, each step in a transaction of its own.

    Raises ConfigError, and touches nothing, when the file is not a Galley store or was written by a newer Galley.
    """
    steps = migrations() if steps is None else steps
    for step in steps[recognise(connection, name=name, latest=len(steps)) :]:
        # executescript commits before it starts, so the transaction is part of the script.
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{step.sql}\n"
                f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {step.number};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def recognise(connection: sqlite3.Connection, *, name: str, latest: int | None = None) -> int:
    """Return the number of the last step this store has seen, 0 for a new file."""
    latest = len(migrations()) if latest is None else latest
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application or version or tables:
            raise ConfigError(f"{name} is not a Galley store: move it away or choose another GALLEY_HOME")
        return 0
    if version > latest:
        raise ConfigError(
            f"{name} was written by a newer Galley (schema {version}, this one knows {latest}): "
            "upgrade Galley, or restore a backup that this version made"
        )
    return int(version)
