"""The database itself refuses to forget: what no statement may do to the log, whoever sends it."""

import sqlite3

import pytest

from tests.contract.store_kit import Kit, draft

pytestmark = pytest.mark.anyio

REFUSED = {
    "a row is changed": "UPDATE rows SET body = x'7b7d'",
    "a row is renumbered": "UPDATE rows SET seq = seq + 10",
    "a row is deleted": "DELETE FROM rows WHERE seq = 2",
    "every row is deleted": "DELETE FROM rows",
    "a row is replaced": (
        "INSERT OR REPLACE INTO rows SELECT pk, session, seq, id, 'other', at, hash, cuts, body FROM rows"
    ),
    "a row is inserted before others": (
        "INSERT INTO rows (session, seq, id, type, at, hash, body) "
        "SELECT session, 1, id, type, at, hash, body FROM rows WHERE seq = 1"
    ),
    "a row is inserted after a gap": (
        "INSERT INTO rows (session, seq, id, type, at, hash, body) "
        "SELECT session, 9, id, type, at, hash, body FROM rows WHERE seq = 1"
    ),
    "a row belongs to no session": (
        "INSERT INTO rows (session, seq, id, type, at, hash, body) VALUES (99, 1, 'e', 't', 0, x'00', x'7b7d')"
    ),
    "a session is deleted": "DELETE FROM sessions",
    "a session is renamed": "UPDATE sessions SET id = 'sesn_other'",
    "a session is replaced": "INSERT OR REPLACE INTO sessions SELECT * FROM sessions",
    "a head goes back": "UPDATE sessions SET seq = seq - 1",
    "an epoch goes back": "UPDATE sessions SET epoch = epoch - 1",
    "a tombstone is written over no session": (
        "INSERT INTO tombstones VALUES ('sesn_none', 99, 1, x'00', 0, 'me', x'00')"
    ),
    "a tombstone is written over another head": (
        "INSERT INTO tombstones SELECT id, pk, seq - 1, hash, 0, 'me', x'00' FROM sessions"
    ),
    "content is changed": "UPDATE blobs SET content = x'00'",
    "content in use is deleted": "DELETE FROM blobs",
}


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED.keys())
async def test_the_database_refuses_that(kit: Kit, statement: str) -> None:
    session_id = await kit.begin(draft(), draft(text="z" * 100_000), draft())
    with pytest.raises(sqlite3.IntegrityError):
        await kit.database.write(lambda c: c.execute(statement).fetchall())
    assert (await kit.store.verify(session_id)).head.seq == 3


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tombstones SET caller = 'nobody'",
        "DELETE FROM tombstones",
        "INSERT OR REPLACE INTO tombstones SELECT session_id, session, 0, hash, at, caller, signature FROM tombstones",
        "INSERT INTO sessions (id, seq, hash, at, signature) SELECT session_id, 0, hash, 0, x'00' FROM tombstones",
    ],
)
async def test_the_database_keeps_a_tombstone_as_it_is(kit: Kit, statement: str) -> None:
    session_id = await kit.begin()
    stone = await kit.store.delete(session_id, caller="key")
    with pytest.raises(sqlite3.IntegrityError):
        await kit.database.write(lambda c: c.execute(statement).fetchall())
    assert (await kit.store.verify(session_id)).tombstone == stone


async def test_content_already_there_is_not_replaced(kit: Kit) -> None:
    session_id = await kit.begin(draft(text="z" * 100_000))
    await kit.database.write(
        lambda c: c.execute("INSERT OR REPLACE INTO blobs SELECT hash, x'00' FROM blobs").fetchall()
    )
    assert (await kit.store.verify(session_id)).head.seq == 1
