"""The keys of a home: made once, kept to their owner."""

import stat
from pathlib import Path

import pytest
from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.kept import grant_key_of, private_directory, service_key_of
from galley_vault_proxy.secret import Secret


def test_a_key_is_made_once(tmp_path: Path) -> None:
    assert service_key_of(tmp_path, None).reveal() == service_key_of(tmp_path, None).reveal()
    assert grant_key_of(tmp_path) == grant_key_of(tmp_path)
    assert len(grant_key_of(tmp_path)) == 32


def test_a_chosen_key_is_not_written(tmp_path: Path) -> None:
    assert service_key_of(tmp_path, Secret("chosen-key-0123456")).reveal() == "chosen-key-0123456"
    assert list(tmp_path.iterdir()) == []


def test_a_key_may_be_mounted_for_us(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mounted-key-0123456\n")
    # As Kubernetes does: a link, and readable by the group.
    (tmp_path / "key").symlink_to("there")
    assert service_key_of(tmp_path, tmp_path / "key").reveal() == "mounted-key-0123456"


@pytest.mark.parametrize("content", [None, "", "canary", "canary canary canary canary"])
def test_a_mounted_key_that_is_none_is_refused_and_not_shown(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match="GALLEY_PROXY_KEY_FILE") as caught:
        service_key_of(tmp_path, tmp_path / "key")
    assert "canary" not in str(caught.value)


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    service_key_of(tmp_path, None)
    grant_key_of(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["service_key", "grant_key"])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, name: str) -> None:
    service_key_of(tmp_path, None)
    grant_key_of(tmp_path)
    (tmp_path / name).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        (service_key_of(tmp_path, None), grant_key_of(tmp_path))


def test_a_key_behind_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("f" * 64)
    (tmp_path / "grant_key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="grant_key"):
        grant_key_of(tmp_path)


def test_a_broken_key_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "grant_key").touch(0o600)
    (tmp_path / "grant_key").write_text("canary")
    with pytest.raises(ConfigError) as caught:
        grant_key_of(tmp_path)
    assert "canary" not in str(caught.value)


def test_a_home_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    private_directory(tmp_path / "home")
    private_directory(tmp_path / "new" / "home")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "home").stat().st_mode) == 0o700


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(ConfigError, match="GALLEY_PROXY_HOME"):
        private_directory(tmp_path / "home")
