"""The `galley` command: what it prints, and what it loads to do so."""

import subprocess
import sys
from pathlib import Path

import pytest
from galley_server import __version__
from galley_server.__main__ import COMMANDS, main

HEAVY = {"anthropic", "mcp", "pydantic", "starlette", "uvicorn", "httpx2", "docker", "asyncio", "sqlite3"}


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"galley {__version__}\n"


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"galley {name} " in shown for name in COMMANDS)


def test_an_unknown_command_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serv"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "galley: 'serv' is not a command; `galley --help` lists them\n"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([command, "--help"], {})
    except SystemExit as ended:  # argparse
        status = int(ended.code or 0)
    assert status == 0
    assert f"galley {command}" in capsys.readouterr().out


def test_a_wrong_setting_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"], {"GALLEY_HOME": str(tmp_path), "GALLEY_SANDBOX": "chroot"}) == 2
    captured = capsys.readouterr()
    assert captured.err == "galley: GALLEY_SANDBOX is 'chroot': use auto, docker or bubblewrap\n"


def test_the_stdio_command_loads_nothing_of_the_server() -> None:
    program = "import sys, galley_server.__main__, galley_server.cli.mcp; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert not HEAVY.intersection(run.stdout.split())
