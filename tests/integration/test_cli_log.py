"""`galley log` and `galley backup` over a store that a server wrote."""

import asyncio
import json
import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from galley_server.__main__ import main
from galley_server.log import internal
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.row import Draft
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries
from galley_server.state import StateFiles
from galley_server.wire.agent import ModelConfig, SessionAgent

SESSION = "sesn_01"
AGENT = SessionAgent(
    id="agent_1",
    version=1,
    name="cook",
    description=None,
    model=ModelConfig(id="m"),
    system=None,
    tools=(),
    mcp_servers=(),
)
CREATED = internal.SessionCreated(agent=AGENT, environment_id="env_1", thread_id="sthr_1")
MESSAGE = {
    "type": "agent.message",
    "id": "sevt_1",
    "content": [{"type": "text", "text": "Four.\x1b[2J"}],
}


async def write_store(files: StateFiles) -> None:
    key = ChainKey.open(files.chain_key)
    async with (
        Database.open(files.database) as database,
        SqliteStore.open(database, key, SessionSummaries(), clock=lambda: datetime(2026, 11, 23, tzinfo=UTC)) as store,
    ):
        created = Draft("irow_1", CREATED.type, CREATED.model_dump_json().encode())
        message = Draft("sevt_1", "agent.message", json.dumps(MESSAGE).encode())
        await store.append(SESSION, [created, message], expected=0)


@pytest.fixture
def files(tmp_path: Path) -> StateFiles:
    files = StateFiles(tmp_path)
    asyncio.run(write_store(files))
    return files


def run(files: StateFiles, *words: str) -> int:
    return main(list(words), {"GALLEY_HOME": str(files.home)})


def test_show_prints_a_line_per_event_that_cannot_steer_the_terminal(
    files: StateFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, "log", "show", SESSION) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == ["2", line.split()[1], "agent.message", "Four.\N{REPLACEMENT CHARACTER}[2J"]


def test_show_internal_prints_every_row(files: StateFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "log", "show", SESSION, "--internal") == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [CREATED.type, "agent.message"]


def test_export_is_every_row_as_json(files: StateFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.jsonl"
    assert run(files, "log", "export", SESSION, "--output", str(target)) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["seq"], row["type"]) for row in rows] == [(1, CREATED.type), (2, "agent.message")]
    assert rows[1]["body"] == MESSAGE
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_export_overwrites_nothing(files: StateFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("kept")
    assert run(files, "log", "export", SESSION, "--output", str(tmp_path / "kept")) == 2
    assert (tmp_path / "kept").read_text() == "kept"


def test_verify_proves_a_session_and_takes_its_head_back(files: StateFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "log", "verify", SESSION) == 0
    ok, session_id, _, head = capsys.readouterr().out.split()
    assert (ok, session_id) == ("ok", SESSION)
    assert run(files, "log", "verify", SESSION, "--head", head) == 0


def test_verify_names_the_row_that_was_changed(files: StateFiles, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(files.database, isolation_level=None)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute("UPDATE rows SET body = CAST(replace(body, 'Four', 'Five') AS BLOB)")
    connection.close()
    assert run(files, "log", "verify") == 1
    assert f"BROKEN {SESSION}: row 2" in capsys.readouterr().out


def test_verify_without_the_key_makes_no_new_one(files: StateFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.chain_key.unlink()
    assert run(files, "log", "verify", SESSION) == 2
    assert "restore it from a backup" in capsys.readouterr().err
    assert not files.chain_key.exists()


def test_an_unknown_session_and_an_unknown_home_are_one_line(
    files: StateFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, "log", "show", "sesn_nobody") == 1
    assert main(["log", "show", SESSION], {"GALLEY_HOME": str(tmp_path / "elsewhere")}) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_backup_is_a_verified_store_of_its_own(
    files: StateFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, "backup", str(tmp_path / "copy.db")) == 0
    assert "1 sessions" in capsys.readouterr().out
    assert run(files, "backup", str(tmp_path / "copy.db")) == 1
    assert "never overwrites" in capsys.readouterr().err
