"""The API key and the id of a home."""

import stat
from pathlib import Path

import pytest
from galley_server.errors import ConfigError
from galley_server.kept import api_key_of, home_id_of, service_key_of
from galley_server.secret import Secret


def test_the_first_start_makes_a_key_that_only_the_owner_can_read(tmp_path: Path) -> None:
    key = api_key_of(tmp_path / "api_key", None)
    assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o600
    assert (tmp_path / "api_key").read_text().strip() == key.reveal()
    assert len(key.reveal()) >= 40


def test_the_next_start_keeps_the_key_and_leaves_no_draft(tmp_path: Path) -> None:
    first = api_key_of(tmp_path / "api_key", None)
    assert api_key_of(tmp_path / "api_key", None).reveal() == first.reveal()
    assert [path.name for path in tmp_path.iterdir()] == ["api_key"]


def test_a_key_that_was_set_wins_and_nothing_is_written(tmp_path: Path) -> None:
    assert api_key_of(tmp_path / "api_key", Secret("a" * 20)).reveal() == "a" * 20
    assert list(tmp_path.iterdir()) == []


def test_the_vault_proxys_key_may_be_mounted_for_us(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mounted-key-0123456\n")
    (tmp_path / "key").symlink_to("there")
    assert service_key_of(tmp_path / "none", tmp_path / "key").reveal() == "mounted-key-0123456"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", [None, "canary", "canary canary canary canary"])
def test_a_mounted_key_that_is_none_is_refused_and_not_shown(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match="GALLEY_PROXY_KEY_FILE") as caught:
        service_key_of(tmp_path / "none", tmp_path / "key")
    assert "canary" not in str(caught.value)


def test_a_key_that_others_can_read_is_refused_with_the_command(tmp_path: Path) -> None:
    api_key_of(tmp_path / "api_key", None)
    (tmp_path / "api_key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        api_key_of(tmp_path / "api_key", None)


@pytest.mark.parametrize("content", ["", "short\n", "two words that are long enough\n", "é" * 30])
def test_a_file_without_a_usable_key_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "api_key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="remove it") as caught:
        api_key_of(tmp_path / "api_key", None)
    assert content.strip() == "" or content.strip() not in str(caught.value)


def test_the_id_of_a_home_stays(tmp_path: Path) -> None:
    first = home_id_of(tmp_path / "home_id")
    assert home_id_of(tmp_path / "home_id") == first
    assert first.startswith("home_")


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        home_id_of(tmp_path / "nowhere" / "home_id")
