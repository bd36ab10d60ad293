"""The chain's key file, and what each hash and signature covers."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from galley_server.errors import ConfigError
from galley_server.log.chain import GENESIS, ChainKey
from galley_server.log.row import Tombstone

KEY = ChainKey(b"k" * 32)
STONE = Tombstone("sesn_1", 3, b"h" * 32, datetime(2026, 11, 23, tzinfo=UTC), "api key")


def row_hash(
    previous: bytes = GENESIS,
    session_id: str = "sesn_1",
    seq: int = 1,
    id: str = "sevt_1",
    type: str = "user.message",
    at: int = 17,
    cuts: str | None = None,
    body: bytes = b"{}",
    key: ChainKey = KEY,
) -> bytes:
    return key.row_hash(previous, session_id, seq, id, type, at, cuts, body)


@pytest.mark.parametrize(
    "changed",
    [
        {"previous": b"p" * 32},
        {"session_id": "sesn_2"},
        {"seq": 2},
        {"id": "sevt_2"},
        {"type": "agent.message"},
        {"at": 18},
        {"cuts": "[]"},
        {"cuts": "null"},
        {"body": b"[]"},
        {"key": ChainKey(b"l" * 32)},
    ],
)
def test_every_fact_of_a_row_is_in_its_hash(changed: dict[str, object]) -> None:
    assert row_hash(**changed) != row_hash()  # type: ignore[arg-type]


def test_no_two_rows_read_as_the_same_text() -> None:
    assert row_hash(id='a","b', type="c") != row_hash(id="a", type='b","c')


def test_a_head_is_signed_with_its_session_and_position() -> None:
    signed = {
        KEY.sign_head("sesn_1", 3, b"h" * 32),
        KEY.sign_head("sesn_2", 3, b"h" * 32),
        KEY.sign_head("sesn_1", 4, b"h" * 32),
        KEY.sign_head("sesn_1", 3, b"i" * 32),
    }
    assert len(signed) == 4


def test_a_tombstone_is_signed_with_all_it_says() -> None:
    others = [replace(STONE, session_id="sesn_2"), replace(STONE, seq=4), replace(STONE, caller="me")]
    signed = {KEY.sign_tombstone(stone, 17) for stone in (STONE, *others)} | {KEY.sign_tombstone(STONE, 18)}
    assert len(signed) == 5


def test_the_key_does_not_print() -> None:
    assert repr(KEY) == "ChainKey(***)"


def test_a_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = ChainKey.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ChainKey.open(path).fingerprint == made.fingerprint


def test_two_homes_have_two_keys(tmp_path: Path) -> None:
    assert ChainKey.open(tmp_path / "a").fingerprint != ChainKey.open(tmp_path / "b").fingerprint


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    ChainKey.open(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        ChainKey.open(path)


@pytest.mark.parametrize("content", [b"", b"abc\n", b"g" * 64, b"\xff" * 64])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(content)
    with pytest.raises(ConfigError, match="key of the log"):
        ChainKey.open(path)


def test_a_key_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be made"):
        ChainKey.open(tmp_path / "nowhere" / "key")
