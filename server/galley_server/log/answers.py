"""First answers to repeatable calls: kept in the transaction of the effect, given again to every repetition."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from galley_server.errors import AlreadyAnswered
from galley_server.log.instant import to_micros
from galley_server.log.row import Row

KEPT_FOR: Final = timedelta(hours=48)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an append keeps beside its rows. `answer` is pure: it runs in the transaction, on the store's thread."""

    key: str
    fingerprint: str
    answer: Callable[[Sequence[Row]], bytes]


@dataclass(frozen=True, slots=True)
class Answered:
    fingerprint: str
    answer: bytes


def remember(connection: sqlite3.Connection, key: str, fingerprint: str, answer: bytes, *, at: datetime) -> None:
    """Keep the answer with the effect. Raises AlreadyAnswered, which undoes the effect, if there is one for the key."""
    oldest = to_micros(at - KEPT_FOR)
    connection.execute("DELETE FROM answers WHERE at < ?", (oldest,))
    added = connection.execute(
        "INSERT INTO answers (key, fingerprint, answer, at) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
        (key, fingerprint, answer, to_micros(at)),
    )
    if added.rowcount == 0:
        raise AlreadyAnswered(key)


def recall(connection: sqlite3.Connection, key: str) -> Answered | None:
    found = connection.execute("SELECT fingerprint, answer FROM answers WHERE key = ?", (key,)).fetchone()
    return None if found is None else Answered(*found)
