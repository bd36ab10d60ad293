"""Whoever writes to the file without the key is found out: rows, content, heads and tombstones."""

import sqlite3
from pathlib import Path

import pytest
from galley_server.errors import ChainBroken, NotFound
from galley_server.log.row import HeadMark
from galley_server.log.verify import reading, session_ids, verify

from tests.contract.store_kit import KEY, Kit, draft, open_kit

pytestmark = pytest.mark.anyio

TAMPERING = {
    "an edited body": (3, "UPDATE rows SET body = CAST(replace(body, 'hello', 'hullo') AS BLOB) WHERE seq = 3"),
    "an edited type": (3, "UPDATE rows SET type = 'agent.message' WHERE seq = 3"),
    "an edited id": (3, "UPDATE rows SET id = 'sevt_other' WHERE seq = 3"),
    "an edited time": (3, "UPDATE rows SET at = at + 1 WHERE seq = 3"),
    "an edited hash": (3, "UPDATE rows SET hash = zeroblob(32) WHERE seq = 3"),
    "a deleted row": (3, "DELETE FROM rows WHERE seq = 3"),
    "a deleted row, the others renumbered": (
        3,
        "DELETE FROM rows WHERE seq = 3; UPDATE rows SET seq = seq - 1 WHERE seq > 3;UPDATE sessions SET seq = seq - 1",
    ),
    "a truncated log": (6, "DELETE FROM rows WHERE seq >= 6"),
    "a truncated log with a head to match": (
        5,
        "DELETE FROM rows WHERE seq > 5; UPDATE sessions SET seq = 5, hash = (SELECT hash FROM rows WHERE seq = 5)",
    ),
    "swapped rows": (
        2,
        "UPDATE rows SET seq = 99 WHERE seq = 2; UPDATE rows SET seq = 2 WHERE seq = 3;"
        "UPDATE rows SET seq = 3 WHERE seq = 99",
    ),
    "a row from nowhere": (
        8,
        "INSERT INTO rows (session, seq, id, type, at, hash, body) "
        "SELECT session, 8, id, type, at, hash, body FROM rows WHERE seq = 7",
    ),
    "an edited content": (4, "UPDATE blobs SET content = CAST(replace(content, 'z', 'y') AS BLOB)"),
    "a missing content": (4, "DELETE FROM blob_uses; DELETE FROM blobs"),
    "an edited reference to content": (4, "UPDATE rows SET cuts = replace(cuts, '[[', '[[1') WHERE seq = 4"),
    "an edited head": (7, "UPDATE sessions SET signature = zeroblob(32)"),
    "a head of nothing": (0, "DELETE FROM rows; UPDATE sessions SET seq = 0, hash = zeroblob(32)"),
}


async def seven_rows(kit: Kit) -> str:
    return await kit.begin(draft(), draft(), draft(), draft(text="z" * 100_000), draft(), draft(), draft())


def tamper(path: Path, script: str) -> None:
    """Do what somebody with the file, a SQLite shell and patience can do: the triggers are no obstacle."""
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.executescript(script)
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "galley.db"


async def test_an_honest_log_verifies(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        verified = await kit.store.verify(session_id)
        assert verified.head == (await kit.store.head(session_id)).mark


@pytest.mark.parametrize(("seq", "script"), TAMPERING.values(), ids=TAMPERING.keys())
async def test_verify_finds(path: Path, seq: int, script: str) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        tamper(path, script)
        with pytest.raises(ChainBroken) as broken:
            await kit.store.verify(session_id)
        assert broken.value.seq == seq


async def test_a_row_of_another_session_does_not_pass(path: Path) -> None:
    async with open_kit(path) as kit:
        one, two = await kit.begin(draft()), await kit.begin(draft())
        tamper(
            path,
            "UPDATE rows SET (id, type, at, hash, body) ="
            "(SELECT id, type, at, hash, body FROM rows WHERE session = 1) WHERE session = 2",
        )
        await kit.store.verify(one)
        with pytest.raises(ChainBroken):
            await kit.store.verify(two)


async def test_a_log_put_back_as_a_whole_is_shown_by_a_head_noted_down(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        earlier = await kit.database.read(lambda c: c.execute("SELECT seq, hash, signature FROM sessions").fetchone())
        await kit.store.append(session_id, [draft(), draft()])
        noted = (await kit.store.head(session_id)).mark
        tamper(path, "DELETE FROM rows WHERE seq > 7")
        tamper(
            path,
            f"UPDATE sessions SET seq = {earlier[0]}, hash = x'{earlier[1].hex()}', signature = x'{earlier[2].hex()}'",
        )
        await kit.store.verify(session_id)
        with pytest.raises(ChainBroken, match="given head is at 9"):
            await kit.store.verify(session_id, noted)


async def test_a_head_noted_down_stays_good_as_the_log_grows(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        noted = HeadMark.parse(str((await kit.store.head(session_id)).mark))
        await kit.store.append(session_id, [draft(), draft()])
        assert (await kit.store.verify(session_id, noted)).head.seq == 9


async def test_a_head_of_another_log_is_refused(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        with pytest.raises(ChainBroken) as broken:
            await kit.store.verify(session_id, HeadMark(5, b"x" * 32))
        assert broken.value.seq == 5


async def test_an_edited_tombstone_is_found(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        await kit.store.delete(session_id, caller="key")
        await kit.store.verify(session_id)
        tamper(path, "UPDATE tombstones SET caller = 'nobody'")
        with pytest.raises(ChainBroken, match="tombstone"):
            await kit.store.verify(session_id)


async def test_a_tombstone_answers_for_the_head_noted_down(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        noted = (await kit.store.head(session_id)).mark
        await kit.store.delete(session_id, caller="key")
        await kit.store.verify(session_id, noted)
        with pytest.raises(ChainBroken):
            await kit.store.verify(session_id, HeadMark(noted.seq + 1, noted.hash))


async def test_a_session_that_never_was_is_not_found(path: Path) -> None:
    async with open_kit(path) as kit:
        with pytest.raises(NotFound):
            await kit.store.verify("sesn_never")


async def test_a_running_store_can_be_verified_from_outside(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        gone = await seven_rows(kit)
        await kit.store.delete(gone, caller="key")
        with reading(path) as connection:
            assert session_ids(connection) == sorted([session_id, gone])
            assert verify(connection, KEY, session_id).head.seq == 7
        await kit.store.append(session_id, [draft()])


async def test_reading_content_that_is_missing_says_so(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await seven_rows(kit)
        tamper(path, "DELETE FROM blob_uses; DELETE FROM blobs")
        with pytest.raises(ChainBroken, match="large content is missing"):
            await kit.store.read(session_id)
