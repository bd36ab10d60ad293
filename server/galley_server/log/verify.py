"""Walking a session's chain: was each row, and the end of them, written by this log and left alone since?

Works on any connection that can read, so also beside the server that owns the store.
"""

import hmac
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from galley_server.errors import ChainBroken, NotFound
from galley_server.log import blobs
from galley_server.log.chain import GENESIS, ChainKey
from galley_server.log.connection import connect_reader
from galley_server.log.instant import from_micros
from galley_server.log.row import HeadMark, Tombstone


@dataclass(frozen=True, slots=True)
class Verified:
    """What was proven: the head, worth noting down elsewhere, and the tombstone if the session was deleted."""

    session_id: str
    head: HeadMark
    tombstone: Tombstone | None = None


def verify(connection: sqlite3.Connection, key: ChainKey, session_id: str, mark: HeadMark | None = None) -> Verified:
    """Check every row, its content, and the signed head; with a mark, also that the log still contains it.

    Without a mark, a store that was put back as a whole to an earlier state passes: only a head noted down elsewhere
    can show that. Raises ChainBroken, or NotFound if there is neither such a session nor its tombstone.
    """
    found = connection.execute("SELECT pk, seq, hash, signature FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if found is None:
        return _verify_tombstone(connection, key, session_id, mark)
    pk, head_seq, head_hash, signature = found
    seq, chained = 0, GENESIS
    for seq, chained in _walk(connection, key, session_id, pk):
        if mark is not None and mark.seq == seq and mark.hash != chained:
            raise ChainBroken(session_id, seq=seq, reason="this row, or one before it, is not what the given head says")
    if not hmac.compare_digest(signature, key.sign_head(session_id, head_seq, head_hash)):
        raise ChainBroken(session_id, seq=head_seq, reason="the head was not signed by this log")
    if seq < head_seq:
        raise ChainBroken(session_id, seq=seq + 1, reason=f"rows are missing: the head is at {head_seq}")
    if seq > head_seq or chained != head_hash:
        raise ChainBroken(session_id, seq=head_seq, reason="the head is not the last row")
    if mark is not None and mark.seq > seq:
        raise ChainBroken(session_id, seq=seq + 1, reason=f"rows are missing: the given head is at {mark.seq}")
    return Verified(session_id, HeadMark(seq, chained))


def session_ids(connection: sqlite3.Connection) -> list[str]:
    """Return every session that can be verified, deleted ones too."""
    found = connection.execute("SELECT id FROM sessions UNION ALL SELECT session_id FROM tombstones ORDER BY 1")
    return [session_id for (session_id,) in found]


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store only to look at it. Blocking: for commands, not for the server."""
    connection = connect_reader(path)
    try:
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


def _walk(connection: sqlite3.Connection, key: ChainKey, session_id: str, pk: int) -> Iterator[tuple[int, bytes]]:
    """Yield the position and hash of each row that is what was written behind the one before."""
    chained = GENESIS
    checked: set[bytes] = set()
    rows = connection.execute(
        "SELECT seq, id, type, at, hash, cuts, body FROM rows WHERE session = ? ORDER BY seq", (pk,)
    )
    for expected, (seq, id, type, at, hash, cuts, body) in enumerate(rows, start=1):
        if seq != expected:
            raise ChainBroken(session_id, seq=expected, reason="this row is missing")
        chained = key.row_hash(chained, session_id, seq, id, type, at, cuts, body)
        if not hmac.compare_digest(chained, hash):
            raise ChainBroken(session_id, seq=seq, reason="this row is not what was written here")
        if cuts is not None:
            _check_content(connection, session_id, seq, cuts, checked)
        yield seq, chained


def _check_content(connection: sqlite3.Connection, session_id: str, seq: int, cuts: str, checked: set[bytes]) -> None:
    for name in blobs.hashes(cuts):
        if name in checked:
            continue
        found = connection.execute("SELECT content FROM blobs WHERE hash = ?", (name,)).fetchone()
        if found is None:
            raise ChainBroken(session_id, seq=seq, reason="its large content is missing")
        if blobs.name_of(found[0]) != name:
            raise ChainBroken(session_id, seq=seq, reason="its large content is not what was written")
        checked.add(name)


def _verify_tombstone(
    connection: sqlite3.Connection, key: ChainKey, session_id: str, mark: HeadMark | None
) -> Verified:
    found = connection.execute(
        "SELECT session, seq, hash, at, caller, signature FROM tombstones WHERE session_id = ?", (session_id,)
    ).fetchone()
    if found is None:
        raise NotFound(f"Session {session_id} was not found.")
    pk, seq, hash, at, caller, signature = found
    stone = Tombstone(session_id, seq, hash, from_micros(at), caller)
    if not hmac.compare_digest(signature, key.sign_tombstone(stone, at)):
        raise ChainBroken(session_id, seq=seq, reason="the tombstone was not signed by this log")
    if connection.execute("SELECT 1 FROM rows WHERE session = ?", (pk,)).fetchone() is not None:
        raise ChainBroken(session_id, seq=seq, reason="the session was deleted, and rows of it are still there")
    if mark is not None and (mark.seq > seq or (mark.seq == seq and mark.hash != hash)):
        raise ChainBroken(
            session_id, seq=seq, reason="the session was deleted at a head that does not contain the given one"
        )
    return Verified(session_id, HeadMark(seq, hash), stone)
