"""The command: what it lists exists, and what goes wrong is one line."""

import importlib

import pytest
from galley_vault_proxy.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"], {})
    assert ended.value.code == 0
    assert f"galley-vault-proxy {name}" in capsys.readouterr().out


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], {}) == 0
    shown = capsys.readouterr().out
    assert all(f"galley-vault-proxy {name} " in shown for name in COMMANDS)


def test_without_a_command_the_help_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {}) == 2
    assert "Usage:" in capsys.readouterr().out


def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"], {"GALLEY_PROXY_KEY": "short"}) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("galley-vault-proxy: GALLEY_PROXY_KEY is too short")
    assert len(shown.splitlines()) == 1
