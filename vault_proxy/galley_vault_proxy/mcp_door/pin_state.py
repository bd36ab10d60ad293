"""The pins in `state.db`. SQL only."""

import sqlite3
import time
from collections.abc import Collection, Mapping
from typing import Final

from galley_vault_proxy.mcp_door.pins import Pin, PinPlace, sound
from galley_vault_proxy.state import Schema, State

SCHEMA: Final = Schema(
    "mcp_pins",
    (
        """
        CREATE TABLE mcp_pins (
            url TEXT NOT NULL,
            credential_id TEXT NOT NULL,
            name TEXT NOT NULL,
            digest TEXT NOT NULL,
            definition TEXT NOT NULL,
            pinned_at INTEGER NOT NULL,
            PRIMARY KEY (url, credential_id, name)
        ) STRICT, WITHOUT ROWID;
        """,
    ),
)

_LOAD: Final = "SELECT name, digest, definition FROM mcp_pins WHERE url = ? AND credential_id = ?"
_ADD: Final = "INSERT OR IGNORE INTO mcp_pins VALUES (?, ?, ?, ?, ?, ?)"
_REPLACE: Final = "INSERT OR REPLACE INTO mcp_pins VALUES (?, ?, ?, ?, ?, ?)"
_FORGET: Final = "DELETE FROM mcp_pins WHERE url = ?1 AND (?2 IS NULL OR name = ?2)"


class StatePins:
    """The PinStore of a proxy: several processes that share the state share the pins."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def load(self, place: PinPlace) -> Mapping[str, Pin]:
        return sound(place, await self._state.read(lambda db: _load(db, place)))

    async def add(self, place: PinPlace, pins: Collection[Pin]) -> Mapping[str, Pin]:
        rows = [_row(place, pin) for pin in pins]

        def add(db: sqlite3.Connection) -> list[Pin]:
            db.executemany(_ADD, rows)
            return _load(db, place)

        return sound(place, await self._state.write(add))

    async def replace(self, place: PinPlace, pin: Pin) -> None:
        row = _row(place, pin)
        await self._state.write(lambda db: db.execute(_REPLACE, row).rowcount)

    async def forget(self, url: str, name: str | None = None) -> int:
        return await self._state.write(lambda db: db.execute(_FORGET, (url, name)).rowcount)


def _load(db: sqlite3.Connection, place: PinPlace) -> list[Pin]:
    return [Pin(*row) for row in db.execute(_LOAD, (place.url, place.credential_id))]


def _row(place: PinPlace, pin: Pin) -> tuple[str, str, str, str, str, int]:
    return (place.url, place.credential_id, pin.name, pin.digest, pin.definition, time.time_ns() // 1_000_000)
