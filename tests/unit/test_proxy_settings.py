"""Every setting of the vault proxy is checked when it starts, and an error names it."""

import ipaddress
from pathlib import Path

import pytest
from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.settings import (
    CATALOGUE,
    AppRoleAuth,
    JwtAuth,
    KubernetesAuth,
    Settings,
    TokenAuth,
    TokenFileAuth,
    home_of,
)

HOME = {"GALLEY_PROXY_HOME": "/srv/proxy"}
VAULT = {**HOME, "VAULT_ADDR": "https://vault.example.com:8200", "VAULT_TOKEN": "hvs.canary"}
PAGE = Path(__file__).parents[2] / "docs" / "proxy-settings.md"


def test_the_defaults_are_the_embedded_store_and_no_open_network() -> None:
    settings = Settings.from_env(HOME)
    assert settings == Settings(home=Path("/srv/proxy"))
    assert settings.vault is None
    assert settings.allow_nets == ()


@pytest.mark.parametrize(
    ("environ", "platform", "home"),
    [
        ({"GALLEY_PROXY_HOME": "/a", "GALLEY_HOME": "/b"}, "linux", "/a"),
        ({"GALLEY_HOME": "/b"}, "linux", "/b/vault_proxy"),
        ({"HOME": "/u", "XDG_DATA_HOME": "/x"}, "linux", "/x/galley/vault_proxy"),
        ({"HOME": "/u"}, "linux", "/u/.local/share/galley/vault_proxy"),
        ({"HOME": "/u"}, "darwin", "/u/Library/Application Support/galley/vault_proxy"),
    ],
)
def test_the_home_lies_in_the_home_of_galley(environ: dict[str, str], platform: str, home: str) -> None:
    assert home_of(environ, platform) == Path(home)


def test_networks_are_cidrs() -> None:
    settings = Settings.from_env({**HOME, "GALLEY_PROXY_ALLOW_NETS": "10.1.0.0/16, fd00::/8"})
    assert settings.allow_nets == (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))


def test_vault_is_read_as_its_own_command_reads_it() -> None:
    vault = Settings.from_env(
        {
            **VAULT,
            "VAULT_NAMESPACE": "team/agents",
            "VAULT_CACERT": "/etc/ca.pem",
            "VAULT_CLIENT_TIMEOUT": "20s",
            "VAULT_TLS_SERVER_NAME": "vault",
            "GALLEY_VAULT_KV_MOUNT": "kv/team",
        }
    ).vault
    assert vault is not None
    assert (vault.address, vault.namespace, vault.timeout_s) == (VAULT["VAULT_ADDR"], "team/agents", 20.0)
    assert (vault.ca_cert, vault.tls_server_name, vault.mounts.kv) == (Path("/etc/ca.pem"), "vault", "kv/team")
    assert isinstance(vault.auth, TokenAuth)
    assert vault.auth_mount == "token"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"GALLEY_VAULT_AUTH": "token_file", "GALLEY_VAULT_TOKEN_FILE": "/run/token"}, TokenFileAuth),
        (
            {"GALLEY_VAULT_AUTH": "approle", "GALLEY_VAULT_ROLE_ID": "r", "GALLEY_VAULT_SECRET_ID_FILE": "/run/sid"},
            AppRoleAuth,
        ),
        ({"GALLEY_VAULT_AUTH": "jwt", "GALLEY_VAULT_ROLE": "r", "GALLEY_VAULT_JWT_FILE": "/run/jwt"}, JwtAuth),
        ({"GALLEY_VAULT_AUTH": "kubernetes", "GALLEY_VAULT_ROLE": "r"}, KubernetesAuth),
    ],
)
def test_there_are_five_ways_to_log_in(given: dict[str, str], kind: type) -> None:
    vault = Settings.from_env({**HOME, "VAULT_ADDR": "https://v.example", **given}).vault
    assert vault is not None
    assert isinstance(vault.auth, kind)
    assert vault.auth_mount == given["GALLEY_VAULT_AUTH"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"GALLEY_PROXY_KEY": "short"}, "GALLEY_PROXY_KEY is too short"),
        ({"GALLEY_PROXY_KEY": "with a blank in the middle"}, "GALLEY_PROXY_KEY holds a blank"),
        ({"GALLEY_PROXY_KEY": "k" * 16, "GALLEY_PROXY_KEY_FILE": "/k"}, "GALLEY_PROXY_KEY_FILE are both set"),
        ({"GALLEY_PROXY_ALLOW_NETS": "10.1.2.3/16"}, "GALLEY_PROXY_ALLOW_NETS holds '10.1.2.3/16'"),
        ({"GALLEY_PROXY_ALLOW_NETS": "10.0.0.0/8,"}, "GALLEY_PROXY_ALLOW_NETS holds ''"),
        ({"GALLEY_PROXY_AUDIT_MB": "1"}, "GALLEY_PROXY_AUDIT_MB is '1': use a whole number from 8"),
        ({"GALLEY_PROXY_CACHE_TTL_S": "-1"}, "GALLEY_PROXY_CACHE_TTL_S"),
        ({"GALLEY_PROXY_LOG_LEVEL": "loud"}, "use debug, info, warning or error"),
        ({"GALLEY_PROXY_STORE_KEY": "cloud"}, "use file or keyring"),
        ({"GALLEY_PROXY_URL": "ftp://x"}, "GALLEY_PROXY_URL"),
        ({"GALLEY_PROXY_ALOW_NETS": "x"}, "did you mean GALLEY_PROXY_ALLOW_NETS?"),
        ({"GALLEY_VAULT_ROLEID": "x"}, "did you mean GALLEY_VAULT_ROLE_ID?"),
        ({"VAULT_ADDR": "http://vault.example.com"}, "https"),
        ({"VAULT_ADDR": "https://user:pw@vault.example.com"}, "user name or password"),
        ({"VAULT_ADDR": "https://vault.example.com/v1"}, "without a path"),
        ({"VAULT_ADDR": "https://v.example"}, "GALLEY_VAULT_AUTH=token needs VAULT_TOKEN"),
        ({"VAULT_ADDR": "https://v.example", "GALLEY_VAULT_AUTH": "ldap"}, "GALLEY_VAULT_AUTH is 'ldap'"),
        ({"VAULT_ADDR": "https://v.example", "GALLEY_VAULT_AUTH": "approle"}, "needs GALLEY_VAULT_ROLE_ID"),
        (
            {"VAULT_ADDR": "https://v.example", "GALLEY_VAULT_AUTH": "approle", "GALLEY_VAULT_ROLE_ID": "r"},
            "needs GALLEY_VAULT_SECRET_ID or",
        ),
        ({"VAULT_ADDR": "https://v.example", "GALLEY_VAULT_AUTH": "jwt", "GALLEY_VAULT_ROLE": "r"}, "JWT_FILE"),
        ({**VAULT, "VAULT_SKIP_VERIFY": "true"}, "VAULT_SKIP_VERIFY is on"),
        ({**VAULT, "VAULT_SKIP_VERIFY": "maybe"}, "VAULT_SKIP_VERIFY"),
        ({**VAULT, "VAULT_CLIENT_CERT": "/x.pem"}, "belong together"),
        ({**VAULT, "VAULT_NAMESPACE": "../root"}, "VAULT_NAMESPACE"),
        ({**VAULT, "GALLEY_VAULT_KV_MOUNT": "secret/../sys"}, "GALLEY_VAULT_KV_MOUNT"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(given: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({**HOME, **given})
    assert named in str(caught.value)


def test_what_is_secret_or_known_only_to_vault_may_stand_in_a_file() -> None:
    settings = Settings.from_env(
        {
            **HOME,
            "GALLEY_PROXY_KEY_FILE": "/run/service_key",
            "VAULT_ADDR": "https://v.example",
            "GALLEY_VAULT_AUTH": "approle",
            "GALLEY_VAULT_ROLE_ID_FILE": "/run/role_id",
            "GALLEY_VAULT_SECRET_ID_FILE": "/run/secret_id",
        }
    )
    assert settings.key == Path("/run/service_key")
    assert settings.vault is not None
    assert settings.vault.auth == AppRoleAuth(Path("/run/role_id"), None, Path("/run/secret_id"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:8200", "http://localhost:8200", "http://[::1]:8200"])
def test_plain_http_reaches_a_vault_on_this_machine(address: str) -> None:
    vault = Settings.from_env({**VAULT, "VAULT_ADDR": address}).vault
    assert vault is not None
    assert vault.address == address


@pytest.mark.parametrize(
    "given", [{"GALLEY_PROXY_KEY": "canary-canary bad"}, {**VAULT, "VAULT_TOKEN": "canary token"}, VAULT]
)
def test_no_secret_is_shown(given: dict[str, str]) -> None:
    try:
        text = repr(Settings.from_env({**HOME, **given}))
    except ConfigError as error:
        text = str(error)
    assert "canary" not in text


def test_what_is_set_to_nothing_is_not_set() -> None:
    assert Settings.from_env({**HOME, "VAULT_ADDR": "", "GALLEY_PROXY_KEY": "  "}) == Settings.from_env(HOME)


def test_settings_of_the_server_are_none_of_ours() -> None:
    assert Settings.from_env({**HOME, "GALLEY_API_KEY": "x", "GALLEY_WHATEVER": "y"}) == Settings.from_env(HOME)


def test_the_page_has_exactly_the_settings_of_the_catalogue() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{setting.name}` | {setting.default or 'not set'} | {setting.doc} |" for setting in CATALOGUE]
