"""The file of stdio servers: read strictly, and an error names the file and the key."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from galley_vault_proxy.config import StdioServer, read_config, read_protocols
from galley_vault_proxy.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    return path


def test_the_example_of_the_page_has_every_key_and_is_right(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "proxy-settings.md"
    example = page.read_text().split("```toml\n")[1].split("```")[0]
    path = write(tmp_path, example)
    assert read_config(path)["files"].credential_env == "API_TOKEN"
    assert read_protocols(path) == {"https://mcp.example.com/v1": "legacy"}
    assert tomllib.loads(example)["stdio"]["files"].keys() == {field.name for field in fields(StdioServer)} - {"name"}


def test_without_a_file_there_are_no_servers() -> None:
    assert read_config(None) == {}


def test_a_server_is_a_command_with_a_place_for_its_credential(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [stdio.git-hub]
        command = "npx"
        args = ["-y", "server"]
        credential_env = "GITHUB_TOKEN"
        env = { LOG = "warn" }
        [stdio.bare]
        command = "/bin/server"
        """,
    )
    assert read_config(path) == {
        "git-hub": StdioServer("git-hub", "npx", ("-y", "server"), "GITHUB_TOKEN", {"LOG": "warn"}),
        "bare": StdioServer("bare", "/bin/server"),
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[stdio.a]\nargs = []", "stdio.a.command: Field required"),
        ("[stdio.a]\ncommand = 'x'\narg = []", "stdio.a.arg: Unknown field"),
        ("[stdoi.a]\ncommand = 'x'", "stdoi: Unknown field"),
        ("[stdio.a]\ncommand = ['x']", "stdio.a.command"),
        ("[stdio.a]\ncommand = 'x'\ncredential_env = 'A-B'", "stdio.a.credential_env"),
        ("[stdio.'a b']\ncommand = 'x'", "stdio.a b: use letters"),
        ("[stdio", "is not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "nowhere.toml")


def test_a_value_that_may_be_a_secret_is_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path, "[stdio.a]\ncommand = 'x'\nenv = { TOKEN = 123456789 }\nsecrte = 'canary'")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert "canary" not in str(caught.value)
    assert "123456789" not in str(caught.value)
