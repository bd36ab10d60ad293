"""A backup of a store in use: whole, checked, private, and never over another file."""

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
from galley_server.errors import ChainBroken, ConfigError, InvalidRequest, Unavailable
from galley_server.log.backup import backup
from galley_server.log.chain import ChainKey
from galley_server.log.sqlite import SqliteStore
from galley_server.log.verify import reading, session_ids, verify

from tests.contract.store_kit import KEY, draft, open_kit

pytestmark = pytest.mark.anyio


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("galley.db"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "galley.db"


async def test_a_backup_is_a_store_that_opens_and_verifies(path: Path, tmp_path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await kit.begin(draft(), draft(text="z" * 100_000))
        gone = await kit.begin()
        await kit.store.delete(gone, caller="key")
        made = await backup(path, tmp_path / "copy.db", KEY)
    assert (made.sessions, made.size) == (2, made.path.stat().st_size)
    async with open_kit(made.path) as kit:
        assert len(await kit.store.read(session_id)) == 2
        assert (await kit.store.verify(session_id)).head.seq == 2
        assert (await kit.store.append(session_id, [draft()]))[0].seq == 3


async def test_a_backup_is_private_and_a_single_file(path: Path, tmp_path: Path) -> None:
    async with open_kit(path) as kit:
        await kit.begin()
        made = await backup(path, tmp_path / "copy.db", KEY)
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert listing(tmp_path) == ["copy.db"]


async def test_a_backup_overwrites_nothing(path: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.symlink_to(tmp_path / "elsewhere")
    async with open_kit(path):
        with pytest.raises(InvalidRequest, match="never overwrites"):
            await backup(path, taken, KEY)
    assert listing(tmp_path) == ["taken"]


async def test_a_backup_under_constant_writing_ends_and_is_consistent(path: Path, tmp_path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await kit.begin(*(draft(text=os.urandom(20_000).hex()) for _ in range(200)))
        done, begun = asyncio.Event(), asyncio.Event()
        written = 0

        async def write() -> None:
            nonlocal written
            while not done.is_set():
                await kit.store.append(session_id, [draft()])
                written += 1
                begun.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            async with asyncio.timeout(20):
                await begun.wait()
                before = written
                made = await backup(path, tmp_path / "copy.db", KEY)
            done.set()
        assert written > before
    with reading(made.path) as connection:
        assert session_ids(connection) == [session_id]
        assert 200 <= verify(connection, KEY, session_id).head.seq <= 201 + written


async def test_a_store_that_was_tampered_with_gives_no_backup(path: Path, tmp_path: Path) -> None:
    async with open_kit(path) as kit:
        await kit.begin()
        connection = sqlite3.connect(path)
        connection.execute("UPDATE sessions SET signature = zeroblob(32)")
        connection.commit()
        connection.close()
        with pytest.raises(ChainBroken):
            await backup(path, tmp_path / "copy.db", KEY)
    assert listing(tmp_path) == []


async def test_another_key_is_refused(path: Path, tmp_path: Path) -> None:
    async with open_kit(path):
        with pytest.raises(ConfigError, match="key of the log"):
            await backup(path, tmp_path / "copy.db", ChainKey(b"o" * 32))
    assert listing(tmp_path) == []


async def test_a_store_that_is_not_there_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be opened"):
        await backup(path, tmp_path / "copy.db", KEY)
    assert listing(tmp_path) == []


async def test_a_folder_that_is_not_there_is_said(path: Path, tmp_path: Path) -> None:
    async with open_kit(path):
        with pytest.raises(Unavailable, match="cannot be written"):
            await backup(path, tmp_path / "nowhere" / "copy.db", KEY)


async def test_a_store_with_another_key_is_not_opened(path: Path) -> None:
    async with open_kit(path) as kit:
        with pytest.raises(ConfigError, match="put the right key file back"):
            async with SqliteStore.open(kit.database, ChainKey(b"o" * 32), kit.codec):
                pass
