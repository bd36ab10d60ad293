"""Paths: every symlink followed, then contained."""

import os
from pathlib import Path

import pytest
from galley_sandbox.hand.paths import Places, ToolError, canonical, refuse_read_only, resolve, within


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("work", "extra", "outside"):
        (tmp_path / name).mkdir()
    return Places(str(tmp_path / "work"), (str(tmp_path / "extra"),), (str(tmp_path / "extra" / "fixed"),))


@pytest.mark.parametrize("path", ["a", "a/b/../c", "./a", "{work}/a", "{work}", "{extra}/a"])
def test_what_is_inside_is_allowed(places: Places, path: str) -> None:
    resolve(places, path.format(work=places.workspace, extra=places.allowed[0]), op="read")


@pytest.mark.parametrize("path", ["..", "../outside", "/etc/passwd", "{work}x", "a/../../outside"])
def test_what_is_outside_is_not(places: Places, path: str) -> None:
    with pytest.raises(ToolError, match=r"read: path .* is outside the session's working directory"):
        resolve(places, path.format(work=places.workspace), op="read")


@pytest.mark.parametrize("target", ["../outside", "/etc", "../outside/not/there", "second"])
def test_a_link_counts_for_where_it_leads(places: Places, target: str) -> None:
    (Path(places.workspace) / "second").symlink_to("../outside")
    (Path(places.workspace) / "link").symlink_to(target)
    with pytest.raises(ToolError, match="is outside"):
        resolve(places, "link/file", op="read")


def test_a_loop_of_links_is_an_error_of_its_own(places: Places) -> None:
    (Path(places.workspace) / "loop").symlink_to("loop")
    with pytest.raises(ToolError, match="too many levels of symbolic links"):
        resolve(places, "loop", op="read")


def test_what_does_not_exist_yet_stays_as_spelled(places: Places) -> None:
    assert resolve(places, "new/deep/file", op="write") == f"{places.workspace}/new/deep/file"


def test_canonical_agrees_with_the_system_on_what_exists(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "back").symlink_to("../link")
    path = str(tmp_path / "link" / "back" / "back" / ".." / "link")
    assert canonical(path) == os.path.realpath(os.path.normpath(path))


def test_read_only_places_refuse_writing(places: Places) -> None:
    with pytest.raises(ToolError, match="write: x is inside read-only directory"):
        refuse_read_only(places, places.read_only[0] + "/f", op="write", path="x")


def test_a_common_beginning_is_not_being_inside() -> None:
    assert within("/a/b", "/a")
    assert not within("/ab", "/a")
    assert within("/ab", "/")
