"""Durable appends through the store against raw SQLite, one row and one commit at a time, on the same disk.

    python bench/append.py [FOLDER]

The store does more for an append: lease and position are checked, the row is chained with an HMAC, the head is signed,
the summary is folded and written, two indexes and the triggers are kept. It must still be faster, by group commit.
"""

import argparse
import asyncio
import itertools
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from galley_server.ids import new_id
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.internal import SessionCreated
from galley_server.log.row import Draft
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries

SECONDS = 1.0
ROUNDS = 5
TARGETS = {8: 1.2, 64: 1.6}


AGENT = {
    "id": "agent_1", "type": "agent", "version": 1, "name": "a", "description": None, "system": None,
    "model": {"id": "m"},
    "tools": [], "mcp_servers": [], "skills": [], "multiagent": None,
}  # fmt: skip


def first_draft() -> Draft:
    created = SessionCreated.model_validate({"agent": AGENT, "environment_id": "env_1", "thread_id": "sthr_1"})
    return Draft(new_id("irow"), created.type, created.model_dump_json().encode())


def draft() -> Draft:
    id = new_id("sevt")
    text = "x" * 900
    body = json.dumps({"content": [{"text": text, "type": "text"}], "id": id, "type": "user.message"})
    return Draft(id, "user.message", body.encode())


def raw_rate(folder: Path, name: str) -> float:
    """Appends a second of the plainest durable program: one connection, one row, one commit."""
    connection = sqlite3.connect(folder / f"{name}.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE log (session TEXT, seq INTEGER, id TEXT, type TEXT, body BLOB)")
    start = time.perf_counter()
    for done in itertools.count(1):
        item = draft()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO log VALUES ('sesn_1', ?, ?, ?, ?)", (done, item.id, item.type, item.body))
        connection.execute("COMMIT")
        elapsed = time.perf_counter() - start
        if elapsed >= SECONDS:
            connection.close()
            return done / elapsed
    raise AssertionError("unreachable")


async def store_rate(folder: Path, name: str, writers: int) -> float:
    """Appends a second, acknowledged, of `writers` sessions that each wait for one before they make the next."""
    async with (
        Database.open(folder / f"{name}.db") as database,
        SqliteStore.open(database, ChainKey(bytes(32)), SessionSummaries()) as store,
    ):
        sessions = [new_id("sesn") for _ in range(writers)]
        for session in sessions:
            await store.append(session, [first_draft()], expected=0)
        done = 0
        start = time.perf_counter()

        async def write(session: str) -> None:
            nonlocal done
            while time.perf_counter() - start < SECONDS:
                await store.append(session, [draft()])
                done += 1

        async with asyncio.TaskGroup() as tasks:
            for session in sessions:
                tasks.create_task(write(session))
        return done / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="where to write; default: the system's temporary folder")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        for writers, target in TARGETS.items():
            raws, stores = [], []
            for round in range(ROUNDS):  # side by side, so that other load on the machine hits both
                raws.append(raw_rate(folder, f"raw-{writers}-{round}"))
                stores.append(asyncio.run(store_rate(folder, f"store-{writers}-{round}", writers)))
            raw, store = statistics.median(raws), statistics.median(stores)
            ratio = statistics.median(ours / theirs for ours, theirs in zip(stores, raws, strict=True))
            failed |= ratio < target
            print(f"{writers:>3} at once: {store:7.0f}/s, raw {raw:7.0f}/s: {ratio:.2f} times (at least {target})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
