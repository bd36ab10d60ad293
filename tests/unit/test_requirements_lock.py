"""What `make` installs is pinned, by hash, and names no registry."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ["galley", "dev", "uv", "node"]


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9_.-]+)==([^ \\;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_pin_or_a_hash(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    allowed = re.compile(r"^([a-z0-9_.-]+==\S+( ;.*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?)$")
    assert [line for line in lines if not allowed.match(line)] == []


def test_every_dependency_of_the_project_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=]", dependency)[0] for dependency in project["dependencies"]}
    assert wanted <= pins("galley").keys()


def test_who_develops_runs_what_is_shipped() -> None:
    developing = pins("dev")
    assert {name: developing.get(name) for name in pins("galley")} == pins("galley")
