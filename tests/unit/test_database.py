"""The database: group commit, who is told what, what it refuses to open."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest
from galley_server.errors import ConfigError, Unavailable
from galley_server.log.database import Database

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(":memory:" if request.param == "memory" else tmp_path / "galley.db") as opened:
        yield opened


def put(name: str, value: bytes = b"") -> "Put":
    return Put(name, value)


class Put:
    """Writes one fact; the shortest thing that writes."""

    def __init__(self, name: str, value: bytes) -> None:
        self.name, self.value = name, value

    def __call__(self, connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO log_facts VALUES (?, ?)", (self.name, self.value))
        return self.name


def names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM log_facts ORDER BY name")]


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


async def test_a_write_returns_what_its_function_returns(database: Database) -> None:
    assert await database.write(put("a")) == "a"
    assert await database.read(names) == ["a"]


async def test_writes_of_one_moment_share_a_commit(database: Database) -> None:
    statements: list[str] = []
    await database.write(lambda c: c.set_trace_callback(statements.append))
    statements.clear()
    await asyncio.gather(*(database.write(put(f"{n}")) for n in range(50)))
    assert statements.count("COMMIT") <= 3
    assert sum(statement.startswith("INSERT") for statement in statements) == 50


async def test_writes_run_in_the_order_of_the_calls(database: Database) -> None:
    order: list[int] = []
    await asyncio.gather(*(database.write(lambda c, n=n: order.append(n)) for n in range(50)))  # type: ignore[misc]
    assert order == list(range(50))


async def test_a_write_that_fails_undoes_itself_alone(database: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        put("half")(connection)
        raise LookupError("changed my mind")

    outcomes = await asyncio.gather(
        database.write(put("a")), database.write(half), database.write(put("b")), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [str, LookupError, str]
    assert await database.read(names) == ["a", "b"]


async def test_a_broken_constraint_is_its_callers_business(database: Database) -> None:
    await database.write(put("a"))
    with pytest.raises(sqlite3.IntegrityError):
        await database.write(put("a"))
    assert await database.write(put("b")) == "b"


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises((sqlite3.OperationalError, Unavailable)):
        await database.read(put("a"))
    await database.write(put("b"))
    assert await database.read(names) == ["b"]


async def test_a_read_sees_every_write_acknowledged_before(database: Database) -> None:
    for number in range(50):
        await database.write(put(f"{number:02}"))
        assert len(await database.read(names)) == number + 1


async def test_reads_run_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=5)
    async with Database.open(tmp_path / "galley.db") as database:
        await asyncio.gather(*(database.read(lambda c: together.wait()) for _ in range(3)))


async def test_a_read_is_not_held_up_by_a_write(tmp_path: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        put("slow")(connection)
        begun.set()
        assert release.wait(5)

    async with Database.open(tmp_path / "galley.db") as database, asyncio.TaskGroup() as tasks:
        tasks.create_task(database.write(slow))
        await anyio.to_thread.run_sync(begun.wait, 5)
        assert await database.read(names) == []
        release.set()


async def test_committed_is_called_even_if_the_caller_has_gone(database: Database) -> None:
    begun, release, heard = threading.Event(), threading.Event(), asyncio.Event()

    def slow(connection: sqlite3.Connection) -> None:
        put("slow")(connection)
        begun.set()
        assert release.wait(5)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(database.write(slow, committed=lambda _: heard.set()))
        await anyio.to_thread.run_sync(begun.wait, 5)
        task.cancel()
        release.set()
    async with asyncio.timeout(5):
        await heard.wait()
    assert await database.read(names) == ["slow"]


async def test_committed_is_not_called_for_what_failed(database: Database) -> None:
    heard: list[str] = []
    await database.write(put("a"))
    with pytest.raises(sqlite3.IntegrityError):
        await database.write(put("a"), committed=heard.append)
    assert heard == []


async def test_closing_finishes_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "galley.db"
    async with asyncio.TaskGroup() as tasks:
        async with Database.open(path) as database:
            writes = [tasks.create_task(database.write(put(f"{n:02}"))) for n in range(30)]
            await asyncio.sleep(0)  # all are queued now
        assert [await write for write in writes] == [f"{n:02}" for n in range(30)]
    async with Database.open(path) as database:
        assert len(await database.read(names)) == 30


async def test_a_closed_database_says_that_it_is_closed(database: Database) -> None:
    await database._close()
    with pytest.raises(Unavailable, match="stopping"):
        await database.write(put("late"))
    with pytest.raises(Unavailable, match="stopping"):
        await database.read(names)


async def test_the_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "galley.db"
    path.touch(0o644)
    async with Database.open(path) as database:
        await database.write(put("a"))
        modes = modes_in(tmp_path)
    assert modes == {"galley.db": 0o600, "galley.db-wal": 0o600, "galley.db-shm": 0o600}


async def test_a_commit_is_synced(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "galley.db") as database:
        asked = ("journal_mode", "synchronous", "foreign_keys")
        told = await database.write(lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in asked])
    assert told == ["wal", 2, 1]


async def test_a_store_of_a_newer_galley_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "galley.db"
    async with Database.open(path) as database:
        await database.write(lambda c: c.execute("PRAGMA user_version = 999").fetchall())
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(ConfigError, match="newer Galley"):
            async with Database.open(path, readonly=readonly):
                pass
    assert path.read_bytes() == before


async def test_a_file_of_another_program_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(ConfigError, match="not a Galley store"):
        async with Database.open(path):
            pass


async def test_a_readonly_database_reads_beside_its_server(tmp_path: Path) -> None:
    path = tmp_path / "galley.db"
    async with Database.open(path) as server, Database.open(path, readonly=True) as visitor:
        await server.write(put("a"))
        assert await visitor.read(names) == ["a"]
        with pytest.raises(Unavailable, match="only to be read"):
            await visitor.write(put("b"))


async def test_a_name_with_odd_characters_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a folder?mode=memory" / "100%#.db"
    path.parent.mkdir()
    async with Database.open(path) as database:
        await database.write(put("a"))
        assert await database.read(names) == ["a"]
    assert path.exists()
