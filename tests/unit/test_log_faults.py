"""When the store's file fails: nothing is acknowledged, the message says why, and it goes on when that clears."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from galley_server.errors import Unavailable
from galley_server.log import faults

from tests.contract.store_kit import Kit, draft, open_kit

pytestmark = pytest.mark.anyio

LARGE = 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "galley.db"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes, really mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk; the same fault is also made without one, by a page limit")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def contents(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


async def append_until_refused(kit: Kit, session_id: str) -> tuple[int, Unavailable]:
    """Return the last acknowledged position, and how the next append was refused."""
    seq = 1
    async with asyncio.timeout(20):
        while True:
            try:
                (row,) = await kit.store.append(session_id, [draft(text=os.urandom(LARGE // 2).hex())])
            except Unavailable as refused:
                return seq, refused
            seq = row.seq


async def assert_goes_on(kit: Kit, session_id: str, *, acknowledged: int) -> None:
    (row,) = await kit.store.append(session_id, [draft()])
    assert row.seq == acknowledged + 1
    assert (await kit.store.verify(session_id)).head.seq == row.seq
    assert (await kit.store.summary(session_id)).rows == row.seq


async def test_a_full_disk_refuses_and_then_goes_on(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    overwrite(ballast, bytes(600_000))
    async with open_kit(small_disk / "galley.db") as kit:
        session_id = await kit.begin()
        acknowledged, refused = await append_until_refused(kit, session_id)
        assert "disk that holds galley.db is full" in refused.message
        assert len(await kit.store.read(session_id)) == acknowledged
        remove(ballast)
        await assert_goes_on(kit, session_id, acknowledged=acknowledged)


async def test_a_store_that_may_not_grow_refuses_and_then_goes_on(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await kit.begin()
        await kit.database.write(lambda c: c.execute("PRAGMA max_page_count = 200").fetchall())
        acknowledged, refused = await append_until_refused(kit, session_id)
        assert "is full" in refused.message
        assert len(await kit.store.read(session_id)) == acknowledged
        await kit.database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
        await assert_goes_on(kit, session_id, acknowledged=acknowledged)


async def test_a_full_disk_refuses_everybody_of_the_batch(path: Path) -> None:
    async with open_kit(path) as kit:
        sessions = [await kit.begin() for _ in range(5)]
        await kit.database.write(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())
        large = [draft(text=os.urandom(LARGE).hex())]
        outcomes = await asyncio.gather(*(kit.store.append(one, large) for one in sessions), return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert len({id(outcome) for outcome in outcomes}) == 5
        assert [(await kit.store.head(one)).seq for one in sessions] == [1] * 5


LIMITED = """
import asyncio, resource, signal, sys
from pathlib import Path
from tests.contract.store_kit import draft, open_kit
from tests.unit.test_log_faults import append_until_refused, assert_goes_on

async def main() -> None:
    async with open_kit(Path(sys.argv[1])) as kit:
        session_id = await kit.begin()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        acknowledged, refused = await append_until_refused(kit, session_id)
        assert "failed" in refused.message or "full" in refused.message, refused.message
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await assert_goes_on(kit, session_id, acknowledged=acknowledged)
        print("went on")

asyncio.run(main())
"""


async def test_a_write_that_the_system_cuts_short_refuses_and_then_goes_on(path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIMITED, str(path), cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        output, _ = await run.communicate()
    assert output == b"went on\n"


def set_write_version(path: Path, version: int) -> None:
    """Mark the file with a format that SQLite may only read (https://www.sqlite.org/fileformat2.html, 1.3.3). It stops
    root, too, which permissions do not."""
    with path.open("r+b") as file:
        file.seek(18)
        file.write(bytes([version]))


READ_ONLY, WRITABLE = 3, 2


async def test_a_readonly_store_can_be_read_and_refuses_to_be_written(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await kit.begin()
    set_write_version(path, READ_ONLY)
    async with open_kit(path) as kit:
        assert len(await kit.store.read(session_id)) == 1
        with pytest.raises(Unavailable, match=r"galley\.db cannot be written"):
            await kit.store.append(session_id, [draft()])
        set_write_version(path, WRITABLE)
        await assert_goes_on(kit, session_id, acknowledged=1)


async def test_a_store_on_a_readonly_disk_is_not_opened_to_be_written(small_disk: Path) -> None:
    path = small_disk / "galley.db"
    async with open_kit(path) as kit:
        session_id = await kit.begin()
    remount(small_disk, "ro")
    with pytest.raises(Unavailable, match=r"galley\.db cannot be"):
        async with open_kit(path):
            pass
    remount(small_disk, "rw")
    async with open_kit(path) as kit:
        await assert_goes_on(kit, session_id, acknowledged=1)


async def damaged(kit: Kit, path: Path) -> tuple[str, bytes]:
    """Damage the file under a running store until it notices; return its session of 60 rows and the file as it was."""
    session_id = await kit.begin(*(draft(text=os.urandom(LARGE // 2).hex()) for _ in range(60)))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    connection.close()
    whole = contents(path)
    overwrite(path, os.urandom(len(whole)))
    with pytest.raises(Unavailable, match=r"damaged|no database"):
        await kit.store.read(session_id)
    return session_id, whole


async def test_a_damaged_store_refuses_and_goes_on_when_it_is_restored(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id, whole = await damaged(kit, path)
        with pytest.raises(Unavailable, match="restore"):
            await kit.store.append(session_id, [draft()])
        overwrite(path, whole)
        assert len(await kit.store.read(session_id)) == 60
        await assert_goes_on(kit, session_id, acknowledged=60)


async def test_a_store_that_becomes_readonly_refuses_and_then_goes_on(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id, whole = await damaged(kit, path)
        overwrite(path, whole)
        set_write_version(path, READ_ONLY)
        with pytest.raises(Unavailable, match="cannot be written"):
            await kit.store.append(session_id, [draft()])
        assert len(await kit.store.read(session_id)) == 60
        set_write_version(path, WRITABLE)
        await assert_goes_on(kit, session_id, acknowledged=60)


@pytest.mark.parametrize(("replacement", "said"), [(None, "cannot be opened"), (b"", "not the store it was")])
async def test_another_file_in_its_place_is_not_taken_for_the_store(
    path: Path, replacement: bytes | None, said: str
) -> None:
    async with open_kit(path) as kit:
        session_id, whole = await damaged(kit, path)
        remove(path)
        if replacement is not None:
            overwrite(path, replacement)
        with pytest.raises(Unavailable, match=said):
            await kit.store.append(session_id, [draft()])
        overwrite(path, whole)
        await assert_goes_on(kit, session_id, acknowledged=60)


async def test_a_store_locked_by_another_program_refuses_and_then_goes_on(path: Path) -> None:
    async with open_kit(path) as kit:
        session_id = await kit.begin()
        await kit.database.write(lambda c: c.execute("PRAGMA busy_timeout = 20").fetchall())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked by another program"):
            await kit.store.append(session_id, [draft()])
        other.execute("ROLLBACK")
        other.close()
        await assert_goes_on(kit, session_id, acknowledged=1)


async def test_a_file_that_is_no_database_is_not_opened(path: Path) -> None:
    overwrite(path, os.urandom(10_000))
    with pytest.raises(Unavailable, match="no database"):
        async with open_kit(path):
            pass


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be created"):
        async with open_kit(tmp_path / "nowhere" / "galley.db"):
            pass


async def test_a_file_that_cannot_be_made_private_is_said(tmp_path: Path) -> None:
    loop = tmp_path / "galley.db"
    loop.symlink_to(loop)
    with pytest.raises(Unavailable, match="cannot be opened"):
        async with open_kit(loop):
            pass


@pytest.mark.parametrize("code", [code for code in range(1, 27) if code not in faults.STATEMENT])
def test_every_fault_of_the_file_has_its_sentence(code: int) -> None:
    error = sqlite3.OperationalError("as SQLite puts it")
    error.sqlite_errorcode = code | 3 << 8  # an extended code
    assert faults.is_fault(error)
    assert "as SQLite puts it" not in faults.unavailable(error, name="galley.db").message
