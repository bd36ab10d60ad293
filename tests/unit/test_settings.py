"""Settings: defaults, fall-backs, and a refusal that names the setting for every bad value."""

from pathlib import Path

import pytest
from galley_server.errors import ConfigError
from galley_server.secret import Secret
from galley_server.settings import CATALOGUE, Limits, Settings


def read(**environ: str) -> Settings:
    return Settings.from_env({"GALLEY_HOME": "/srv/galley", **environ})


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = read()
    assert settings.home == Path("/srv/galley")
    assert settings.api_key is None
    assert settings.model.base_url == "https://api.anthropic.com"
    assert settings.sandbox.choice == "auto"
    assert settings.limits == Limits(body_mb=32, file_mb=500)


def test_galley_names_win_over_the_names_of_the_sdk() -> None:
    settings = read(
        GALLEY_MODEL_API_KEY="galley",
        ANTHROPIC_API_KEY="sdk",
        GALLEY_MODEL_BASE_URL="http://127.0.0.1:9/",
        ANTHROPIC_BASE_URL="https://elsewhere.example",
    )
    assert settings.model.api_key is not None
    assert settings.model.api_key.reveal() == "galley"
    assert settings.model.base_url == "http://127.0.0.1:9"


def test_the_names_of_the_sdk_are_read_when_galleys_are_not_set() -> None:
    settings = read(ANTHROPIC_AUTH_TOKEN="bearer", ANTHROPIC_BASE_URL="https://elsewhere.example/v", GALLEY_MODEL="m")
    assert settings.model.api_key is None
    assert settings.model.auth_token is not None
    assert settings.model.auth_token.reveal() == "bearer"
    assert settings.model.base_url == "https://elsewhere.example/v"
    assert settings.model.default == "m"


def test_a_key_shuts_out_the_bearer_token() -> None:
    assert read(ANTHROPIC_API_KEY="key", ANTHROPIC_AUTH_TOKEN="bearer").model.auth_token is None


def test_a_variable_set_to_nothing_counts_as_not_set() -> None:
    assert read(GALLEY_API_KEY="", GALLEY_SANDBOX=" ", ANTHROPIC_API_KEY="") == read()


def test_limits_are_set_and_lifted_by_name() -> None:
    assert read(GALLEY_LIMITS="body_mb=1, file_mb=off").limits == Limits(body_mb=1, file_mb=None)
    assert read(GALLEY_LIMITS="off").limits == Limits(body_mb=None, file_mb=None, tool_rounds=None)
    assert read(GALLEY_LIMITS="body_mb=2").limits.body_bytes == 2 << 20


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("GALLEY_API_KEY", "short", "16 or more characters"),
        ("GALLEY_API_KEY", "with a blank inside it", "HTTP header"),
        ("GALLEY_MODEL_API_KEY", "sk-\u00e4\u00f6\u00fc", "HTTP header"),
        ("ANTHROPIC_AUTH_TOKEN", "two words", "HTTP header"),
        ("GALLEY_MODEL_BASE_URL", "localhost:8000", "http or https URL"),
        ("GALLEY_MODEL_BASE_URL", "http://h:port", "http or https URL"),
        ("GALLEY_MODEL_BASE_URL", "ftp://h", "http or https URL"),
        ("GALLEY_MODEL_BASE_URL", "https://user:hunter2@h", "GALLEY_MODEL_API_KEY"),
        ("ANTHROPIC_BASE_URL", "https://h?x=1", "http or https URL"),
        ("GALLEY_MODEL", "claude opus", "model id"),
        ("GALLEY_SANDBOX", "none", "auto, docker or bubblewrap"),
        ("DOCKER_HOST", "tcp://a b", "an address without blanks"),
        ("GALLEY_SANDBOX_IMAGE", "a b", "an image name"),
        ("GALLEY_SANDBOX_RUNTIME", "-runsc", "a runtime's name"),
        ("GALLEY_SANDBOX_MEMORY_MB", "1GB", "a whole number from 64"),
        ("GALLEY_SANDBOX_MEMORY_MB", "63", "a whole number from 64"),
        ("GALLEY_SANDBOX_CPUS", "0", "a number from 0.1"),
        ("GALLEY_SANDBOX_PIDS", "1e3", "a whole number from 32"),
        ("GALLEY_SANDBOX_DISK_MB", "-5", "a whole number from 16"),
        ("GALLEY_SANDBOX_WALL_S", "forever", "a number from 1"),
        ("GALLEY_LIMITS", "on", "off, or name=value"),
        ("GALLEY_LIMITS", "bodies=3", "body_mb, file_mb, tool_rounds"),
        ("GALLEY_LIMITS", "body_mb=0", "a whole number from 1"),
        ("GALLEY_LIMITS", "body_mb=1,body_mb=2", "twice"),
        ("GALLEY_BROKER", "on", "absolute path"),
        ("GALLEY_PROXY_HOME", "proxy", "absolute path"),
        ("GALLEY_PROXY_KEY", "short", "16 or more"),
        ("GALLEY_PROXY_KEY_FILE", "key", "absolute path"),
        ("GALLEY_LOG_LEVEL", "loud", "debug, info, warning or error"),
    ],
)
def test_a_bad_value_is_refused_naming_the_setting_and_what_is_right(name: str, value: str, right: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(**{name: value})
    assert name in refused.value.message
    assert right in refused.value.message


@pytest.mark.parametrize("name", ["GALLEY_API_KEY", "GALLEY_MODEL_API_KEY", "GALLEY_MODEL_BASE_URL"])
def test_a_refusal_never_shows_a_secret(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(**{name: "https://me:hunter2 @h"})
    assert "hunter2" not in refused.value.message


def test_a_misspelt_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"GALLEY_SANBOX is not a setting of Galley: did you mean GALLEY_SANDBOX\?"):
        read(GALLEY_SANBOX="docker")


def test_printing_settings_prints_no_secret() -> None:
    settings = read(GALLEY_API_KEY="0123456789abcdef", ANTHROPIC_API_KEY="hunter2")
    assert "0123456789abcdef" not in repr(settings)
    assert "hunter2" not in repr(settings)


def test_every_setting_is_described_once() -> None:
    names = [setting.name for setting in CATALOGUE]
    assert len(names) == len(set(names))
    assert all(setting.doc.endswith(".") for setting in CATALOGUE)


def test_the_settings_of_the_vault_proxy_are_left_to_it() -> None:
    environ = {"GALLEY_HOME": "/h", "GALLEY_PROXY_KEY": "k" * 32, "GALLEY_VAULT_AUTH": "token"}
    assert Settings.from_env(environ).home == Path("/h")


def test_a_vault_proxy_is_started_unless_something_else_is_said() -> None:
    found = read(GALLEY_PROXY_CACHE_TTL_S="7", VAULT_ADDR="https://v", ANTHROPIC_API_KEY="k" * 20, PATH="/bin").broker
    assert found is not None
    assert (found.home, found.sockets, found.key) == (Path("/srv/galley/vault_proxy"), None, None)
    assert dict(found.environ) == {
        "GALLEY_PROXY_CACHE_TTL_S": "7",
        "GALLEY_PROXY_HOME": "/srv/galley/vault_proxy",
        "PATH": "/bin",
        "VAULT_ADDR": "https://v",
    }
    assert read(GALLEY_BROKER="off").broker is None
    beside = read(GALLEY_BROKER="/run/proxy", GALLEY_PROXY_HOME="/srv/proxy", GALLEY_PROXY_KEY="x" * 16).broker
    assert beside is not None
    assert (beside.home, beside.sockets) == (Path("/srv/proxy"), Path("/run/proxy"))
    assert isinstance(beside.key, Secret)
    assert beside.key.reveal() == "x" * 16
    from_file = read(GALLEY_BROKER="/run/proxy", GALLEY_PROXY_KEY_FILE="/run/key").broker
    assert from_file is not None
    assert from_file.key == Path("/run/key")
    with pytest.raises(ConfigError, match="both set"):
        read(GALLEY_PROXY_KEY="x" * 16, GALLEY_PROXY_KEY_FILE="/run/key")
    assert "https://v" not in repr(found)
