"""Where a home is, and where its socket."""

import os
import stat
from pathlib import Path

import platformdirs
import pytest
from galley_server.errors import ConfigError
from galley_server.home import SOCKET_PATH_LIMIT, home_of, require_private, run_dir, socket_to_bind, socket_to_dial


def test_the_default_home_is_the_platforms_data_directory() -> None:
    assert home_of(os.environ | {"GALLEY_HOME": ""}) == Path(platformdirs.user_data_dir("galley"))


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {"HOME": "/h"}, "/h/.local/share/galley"),
        ("linux", {"HOME": "/h", "XDG_DATA_HOME": "/x"}, "/x/galley"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Application Support/galley"),
        ("win32", {"HOME": "/h", "LOCALAPPDATA": "/l"}, "/l/galley/galley"),
        ("linux", {"HOME": "/h", "GALLEY_HOME": "/g/./x"}, "/g/x"),
    ],
)
def test_each_platform_has_its_own_place(platform: str, environ: dict[str, str], expected: str) -> None:
    assert home_of(environ, platform) == Path(expected)


def test_the_socket_lies_in_the_home_and_only_we_can_reach_it(tmp_path: Path) -> None:
    path = socket_to_bind(tmp_path / "home")
    assert path == tmp_path / "home" / "run" / "galley.sock" == socket_to_dial(tmp_path / "home")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_home_with_a_long_path_has_its_socket_elsewhere_and_finds_it_again(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    assert socket_to_dial(home) is None
    path = socket_to_bind(home)
    try:
        assert len(os.fsencode(path)) <= SOCKET_PATH_LIMIT
        assert socket_to_bind(home) == path == socket_to_dial(home)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        path.parent.rmdir()
    assert socket_to_dial(home) is None


def test_a_directory_open_to_others_is_closed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)
    assert stat.S_IMODE(run_dir(tmp_path).stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    os.chown(run, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        run_dir(tmp_path)


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="not a directory"):
        require_private(tmp_path / "run")
