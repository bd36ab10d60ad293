"""The numbered steps of the schema: from empty, from any earlier step, and never backwards."""

import hashlib
import sqlite3
from pathlib import Path

import pytest
from galley_server.errors import ConfigError
from galley_server.log.migrations import APPLICATION_ID, Migration, migrate, migrations, recognise

STEPS = (
    Migration(1, "one", "CREATE TABLE one (a TEXT);"),
    Migration(2, "two", "ALTER TABLE one ADD COLUMN b TEXT; INSERT INTO one VALUES ('x', 'y');"),
    Migration(3, "three", "CREATE TABLE three (c TEXT);"),
)

# A released step is never edited: its digest stands here from the release on.
RELEASED: dict[str, str] = {}


@pytest.fixture
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def schema(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


def test_released_steps_are_as_they_were_released() -> None:
    digests = {step.name: hashlib.sha256(step.sql.encode()).hexdigest() for step in migrations()}
    assert {name: digests[name] for name in RELEASED} == RELEASED


def test_an_empty_file_becomes_a_store(connection: sqlite3.Connection) -> None:
    migrate(connection, name="galley.db")
    assert recognise(connection, name="galley.db") == len(migrations())
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize("known", range(len(STEPS) + 1))
def test_every_earlier_store_ends_in_the_same_schema(connection: sqlite3.Connection, known: int) -> None:
    migrate(connection, name="galley.db", steps=STEPS[:known])
    migrate(connection, name="galley.db", steps=STEPS)
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    migrate(fresh, name="galley.db", steps=STEPS)
    assert schema(connection) == schema(fresh)
    assert connection.execute("SELECT * FROM one").fetchall() == [("x", "y")]


def test_a_step_that_fails_leaves_the_store_at_the_one_before(connection: sqlite3.Connection) -> None:
    broken = Migration(3, "three", "CREATE TABLE three (c TEXT); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, name="galley.db", steps=(*STEPS[:2], broken))
    assert recognise(connection, name="galley.db", latest=3) == 2
    assert "three" not in [name for name, _ in schema(connection)]
    migrate(connection, name="galley.db", steps=STEPS)
    assert recognise(connection, name="galley.db", latest=3) == 3


def test_an_older_galley_refuses_a_newer_store(connection: sqlite3.Connection) -> None:
    migrate(connection, name="galley.db", steps=STEPS)
    before = schema(connection)
    with pytest.raises(ConfigError, match=r"newer Galley \(schema 3, this one knows 2\)"):
        migrate(connection, name="galley.db", steps=STEPS[:2])
    assert schema(connection) == before


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE other (a)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"]
)
def test_a_file_of_another_program_is_left_alone(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement)
    with pytest.raises(ConfigError, match="not a Galley store"):
        migrate(connection, name="other.db", steps=STEPS)


def test_the_steps_are_files_named_by_number() -> None:
    folder = Path(__file__).parents[2] / "server/galley_server/log/migrations"
    assert sorted(path.stem for path in folder.glob("*.sql")) == [f"{s.number:04}_{s.name}" for s in migrations()]
