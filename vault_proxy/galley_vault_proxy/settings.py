"""Settings: every environment variable that the proxy reads, read once, checked, and frozen.

`CATALOGUE` is the one table of names; the reference page is made from it, and a name with the prefix `GALLEY_PROXY_`
or `GALLEY_VAULT_` that is not in it is refused, because a typo in a setting must not pass in silence.
No file and no network is touched here.
"""

import difflib
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

from galley_vault_proxy.addresses import Net
from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
KeySource: TypeAlias = Literal["file", "keyring"]
Value = TypeVar("Value")

_PRINTABLE: Final = re.compile(r"[!-~]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MOUNT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(/[A-Za-z0-9][A-Za-z0-9_-]{0,63}){0,3}")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(/[A-Za-z0-9][A-Za-z0-9_-]{0,63}){0,7}/?")
_KUBERNETES_TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the reference page."""

    name: str
    default: str
    doc: str


CATALOGUE: Final = (
    Setting(
        "GALLEY_PROXY_HOME",
        "`$GALLEY_HOME/vault_proxy`",
        "Directory of everything that the proxy keeps. Several proxies on one machine may share it.",
    ),
    Setting("GALLEY_HOME", "the platform's data directory", "Read when `GALLEY_PROXY_HOME` is not set."),
    Setting(
        "GALLEY_PROXY_KEY",
        "generated into `$GALLEY_PROXY_HOME/service_key`",
        "Key of everything under `/v1`, as `x-api-key` or as a bearer token. 16 or more printable characters.",
    ),
    Setting("GALLEY_PROXY_KEY_FILE", "", "A file that holds that key, in place of `GALLEY_PROXY_KEY`."),
    Setting(
        "GALLEY_PROXY_ALLOW_NETS",
        "",
        "Private networks that both doors may reach: CIDRs with commas between, e.g. `10.1.0.0/16,fd00::/8`.",
    ),
    Setting(
        "GALLEY_PROXY_CONFIG",
        "",
        "TOML file with a table `[stdio.NAME]` for each MCP server that the proxy runs itself.",
    ),
    Setting(
        "GALLEY_PROXY_URL",
        "the address it listens on",
        "URL under which people and sandboxes reach the proxy, for the links of OAuth consent.",
    ),
    Setting("GALLEY_PROXY_AUDIT_MB", "`256`", "Most that the audit log keeps, in MiB, 8 to 1048576. The oldest goes."),
    Setting(
        "GALLEY_PROXY_CACHE_TTL_S",
        "`30`",
        "Seconds that a secret read from the store is used before it is read again, 0 to 300.",
    ),
    Setting(
        "GALLEY_PROXY_STORE_KEY",
        "`file`",
        "Where the key of the embedded store is kept: `file` (`$GALLEY_PROXY_HOME/store_key`) or `keyring`.",
    ),
    Setting("GALLEY_PROXY_LOG_LEVEL", "`info`", "`debug`, `info`, `warning` or `error`: what it prints on stderr."),
    Setting(
        "SSL_CERT_FILE", "the system's", "PEM file of the authorities that upstream servers' certificates are from."
    ),
    Setting("VAULT_ADDR", "", "URL of Vault or OpenBao; `https`, or `http` to a loopback address. Unset: embedded."),
    Setting("VAULT_TOKEN", "", "Token of `GALLEY_VAULT_AUTH=token`; the operator's for `bootstrap` and `reconcile`."),
    Setting("VAULT_NAMESPACE", "", "Namespace that holds everything of the proxy's, its own login included."),
    Setting("VAULT_CACERT", "the system's", "PEM file of the certificate authority that Vault's certificate is from."),
    Setting("VAULT_CAPATH", "", "Directory of such files, read when `VAULT_CACERT` is not set."),
    Setting("VAULT_CLIENT_CERT", "", "PEM file of a client certificate. Needs `VAULT_CLIENT_KEY`."),
    Setting("VAULT_CLIENT_KEY", "", "PEM file of the client certificate's key."),
    Setting("VAULT_TLS_SERVER_NAME", "the host of `VAULT_ADDR`", "Name that Vault's certificate must have."),
    Setting("VAULT_CLIENT_TIMEOUT", "`10`", "Seconds that one request to Vault may take, 1 to 300."),
    Setting("VAULT_SKIP_VERIFY", "", "Refused when it is on: set `VAULT_CACERT` instead."),
    Setting("GALLEY_VAULT_AUTH", "`token`", "How to log in: `token`, `token_file`, `approle`, `jwt` or `kubernetes`."),
    Setting("GALLEY_VAULT_AUTH_MOUNT", "the method's name", "Where the auth method is mounted."),
    Setting("GALLEY_VAULT_TOKEN_FILE", "", "File that holds the token of `token_file`; read again when it changes."),
    Setting("GALLEY_VAULT_ROLE_ID", "", "`approle`: the role id."),
    Setting("GALLEY_VAULT_ROLE_ID_FILE", "", "`approle`: a file that holds the role id, read at each login."),
    Setting("GALLEY_VAULT_SECRET_ID", "", "`approle`: the secret id."),
    Setting("GALLEY_VAULT_SECRET_ID_FILE", "", "`approle`: a file that holds the secret id, read at each login."),
    Setting(
        "GALLEY_VAULT_SECRET_ID_WRAPPED", "`false`", "`approle`: `true` if what is given is a wrapping token for it."
    ),
    Setting("GALLEY_VAULT_ROLE", "", "`jwt` and `kubernetes`: the role to log in with."),
    Setting(
        "GALLEY_VAULT_JWT_FILE",
        f"`kubernetes`: `{_KUBERNETES_TOKEN}`",
        "`jwt` and `kubernetes`: file that holds the signed token, read at each login.",
    ),
    Setting("GALLEY_VAULT_KV_MOUNT", "`secret`", "Mount of the KV v2 engine."),
    Setting("GALLEY_VAULT_KV_PREFIX", "`galley`", "Path below it that is the proxy's."),
    Setting("GALLEY_VAULT_TRANSIT_MOUNT", "`transit`", "Mount of the transit engine."),
    Setting("GALLEY_VAULT_TRANSIT_KEY", "`galley`", "Name of the proxy's transit key."),
    Setting("GALLEY_VAULT_DATABASE_MOUNT", "`database`", "Mount of the database engine."),
    Setting("GALLEY_VAULT_PKI_MOUNT", "`pki`", "Mount of the PKI engine."),
    Setting("GALLEY_VAULT_TOKEN_ROLE", "`galley-session`", "Token role that session tokens are made with."),
    Setting("GALLEY_VAULT_POLICY", "`galley-vault`", "Policy of session tokens."),
    Setting(
        "GALLEY_VAULT_PROXY_POLICY", "`galley-proxy`", "Policy of the proxy's own token, which `bootstrap` writes."
    ),
)
NAMES: Final = frozenset(setting.name for setting in CATALOGUE)


@dataclass(frozen=True, slots=True)
class TokenAuth:
    token: Secret


@dataclass(frozen=True, slots=True)
class TokenFileAuth:
    path: Path


@dataclass(frozen=True, slots=True)
class AppRoleAuth:
    """Exactly one of `secret_id` and `secret_id_file` is set; `wrapped`: it is a wrapping token.

    `role_id` a path: the file that holds it.
    """

    role_id: str | Path
    secret_id: Secret | None
    secret_id_file: Path | None
    wrapped: bool = False


@dataclass(frozen=True, slots=True)
class JwtAuth:
    role: str
    path: Path


@dataclass(frozen=True, slots=True)
class KubernetesAuth:
    role: str
    path: Path


VaultAuth: TypeAlias = TokenAuth | TokenFileAuth | AppRoleAuth | JwtAuth | KubernetesAuth


@dataclass(frozen=True, slots=True)
class VaultMounts:
    kv: str = "secret"
    kv_prefix: str = "galley"
    transit: str = "transit"
    transit_key: str = "galley"
    database: str = "database"
    pki: str = "pki"
    token_role: str = "galley-session"
    policy: str = "galley-vault"
    proxy_policy: str = "galley-proxy"


@dataclass(frozen=True, slots=True)
class VaultSettings:
    address: str
    auth: VaultAuth
    auth_mount: str
    namespace: str | None = None
    ca_cert: Path | None = None
    ca_path: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_server_name: str | None = None
    timeout_s: float = 10.0
    mounts: VaultMounts = VaultMounts()


@dataclass(frozen=True, slots=True)
class Settings:
    """`vault` None: the embedded store. `key` a path: the file that holds it."""

    home: Path
    key: Secret | Path | None = None
    allow_nets: tuple[Net, ...] = ()
    config: Path | None = None
    url: str | None = None
    audit_bytes: int = 256 << 20
    cache_ttl_s: float = 30.0
    store_key: KeySource = "file"
    log_level: LogLevel = "info"
    vault: VaultSettings | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and check every setting. A variable that is set to nothing counts as not set.

        Raises ConfigError, which names the setting and says what would be right.
        """
        refuse_unknown(environ)
        given = {name: environ[name].strip() for name in NAMES if environ.get(name, "").strip()}
        return cls(
            home=home_of(environ),
            key=_value_or_file(given, "GALLEY_PROXY_KEY", _service_key),
            allow_nets=_read(given, "GALLEY_PROXY_ALLOW_NETS", _nets, ()),
            config=_read(given, "GALLEY_PROXY_CONFIG", _path, None),
            url=_read(given, "GALLEY_PROXY_URL", _url, None),
            audit_bytes=_read(given, "GALLEY_PROXY_AUDIT_MB", _whole(8, 1 << 20), 256) << 20,
            cache_ttl_s=_read(given, "GALLEY_PROXY_CACHE_TTL_S", _number(0, 300), 30.0),
            store_key=_read(given, "GALLEY_PROXY_STORE_KEY", _one_of(get_args(KeySource)), "file"),  # type: ignore[arg-type]
            log_level=_read(given, "GALLEY_PROXY_LOG_LEVEL", _one_of(get_args(LogLevel)), "info"),  # type: ignore[arg-type]
            vault=vault_settings(environ),
        )


def vault_settings(environ: Mapping[str, str]) -> VaultSettings | None:
    """The part that is about Vault; None when VAULT_ADDR is not set. Raises ConfigError."""
    given = {name: environ[name].strip() for name in NAMES if environ.get(name, "").strip()}
    _refuse_skip_verify(given)
    if "VAULT_ADDR" not in given:
        return None
    address = _vault_address("VAULT_ADDR", given["VAULT_ADDR"])
    if ("VAULT_CLIENT_CERT" in given) != ("VAULT_CLIENT_KEY" in given):
        raise ConfigError("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY belong together: set both or none")
    method = _read(given, "GALLEY_VAULT_AUTH", _one_of(tuple(_AUTH)), "token")
    return VaultSettings(
        address=address,
        auth=_AUTH[method](given),
        auth_mount=_read(given, "GALLEY_VAULT_AUTH_MOUNT", _matching(_MOUNT, "a mount path, e.g. approle"), method),
        namespace=_read(given, "VAULT_NAMESPACE", _matching(_NAMESPACE, "a namespace's path, e.g. team/agents"), None),
        ca_cert=_read(given, "VAULT_CACERT", _path, None),
        ca_path=_read(given, "VAULT_CAPATH", _path, None),
        client_cert=_read(given, "VAULT_CLIENT_CERT", _path, None),
        client_key=_read(given, "VAULT_CLIENT_KEY", _path, None),
        tls_server_name=_read(given, "VAULT_TLS_SERVER_NAME", _plain, None),
        timeout_s=_read(given, "VAULT_CLIENT_TIMEOUT", _timeout, 10.0),
        mounts=_mounts(given),
    )


def home_of(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """GALLEY_PROXY_HOME, else `vault_proxy` in GALLEY_HOME, else in the platform's data directory."""
    own = environ.get("GALLEY_PROXY_HOME", "").strip()
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    chosen = environ.get("GALLEY_HOME", "").strip()
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen))) / "vault_proxy"
    user = Path(environ.get("HOME") or os.path.expanduser("~"))
    if platform == "win32":
        local = environ.get("LOCALAPPDATA") or str(user / "AppData" / "Local")
        return Path(local) / "galley" / "galley" / "vault_proxy"
    if platform == "darwin":
        return user / "Library" / "Application Support" / "galley" / "vault_proxy"
    data = environ.get("XDG_DATA_HOME", "").strip()
    return (Path(data) if data else user / ".local" / "share") / "galley" / "vault_proxy"


def refuse_unknown(environ: Mapping[str, str]) -> None:
    # Other settings with the prefix GALLEY_ are the server's, which often starts in the same environment.
    for name in sorted(environ):
        if name.startswith(("GALLEY_PROXY_", "GALLEY_VAULT_")) and name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else "see the list of settings in docs/proxy-settings.md"
            raise ConfigError(f"{name} is not a setting of the vault proxy: {hint}")


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine by name or by address; nothing is resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(given: Mapping[str, str], name: str, parse: Callable[[str, str], Value], default: Value) -> Value:
    return parse(name, given[name]) if name in given else default


def _value_or_file(given: Mapping[str, str], name: str, parse: Callable[[str, str], Value]) -> Value | Path | None:
    """The value of `name`, or the path in `name`_FILE; not both."""
    if name in given and f"{name}_FILE" in given:
        raise ConfigError(f"{name} and {name}_FILE are both set: set one")
    return parse(name, given[name]) if name in given else _read(given, f"{name}_FILE", _path, None)


def _need(given: Mapping[str, str], name: str, method: str) -> str:
    if name not in given:
        raise ConfigError(f"GALLEY_VAULT_AUTH={method} needs {name}")
    return given[name]


def _token_auth(given: Mapping[str, str]) -> TokenAuth:
    return TokenAuth(_header_secret("VAULT_TOKEN", _need(given, "VAULT_TOKEN", "token")))


def _token_file_auth(given: Mapping[str, str]) -> TokenFileAuth:
    name = "GALLEY_VAULT_TOKEN_FILE"
    return TokenFileAuth(_path(name, _need(given, name, "token_file")))


def _approle_auth(given: Mapping[str, str]) -> AppRoleAuth:
    role_id = _value_or_file(given, "GALLEY_VAULT_ROLE_ID", _plain)
    if role_id is None:
        raise ConfigError("GALLEY_VAULT_AUTH=approle needs GALLEY_VAULT_ROLE_ID or GALLEY_VAULT_ROLE_ID_FILE")
    if ("GALLEY_VAULT_SECRET_ID" in given) == ("GALLEY_VAULT_SECRET_ID_FILE" in given):
        raise ConfigError(
            "GALLEY_VAULT_AUTH=approle needs GALLEY_VAULT_SECRET_ID or GALLEY_VAULT_SECRET_ID_FILE, and not both"
        )
    return AppRoleAuth(
        role_id=role_id,
        secret_id=_read(given, "GALLEY_VAULT_SECRET_ID", _header_secret, None),
        secret_id_file=_read(given, "GALLEY_VAULT_SECRET_ID_FILE", _path, None),
        wrapped=_read(given, "GALLEY_VAULT_SECRET_ID_WRAPPED", _flag, False),
    )


def _jwt_auth(given: Mapping[str, str]) -> JwtAuth:
    name = "GALLEY_VAULT_JWT_FILE"
    role = _plain("GALLEY_VAULT_ROLE", _need(given, "GALLEY_VAULT_ROLE", "jwt"))
    return JwtAuth(role, _path(name, _need(given, name, "jwt")))


def _kubernetes_auth(given: Mapping[str, str]) -> KubernetesAuth:
    role = _plain("GALLEY_VAULT_ROLE", _need(given, "GALLEY_VAULT_ROLE", "kubernetes"))
    return KubernetesAuth(role, _read(given, "GALLEY_VAULT_JWT_FILE", _path, Path(_KUBERNETES_TOKEN)))


_AUTH: Final[Mapping[str, Callable[[Mapping[str, str]], VaultAuth]]] = {
    "token": _token_auth,
    "token_file": _token_file_auth,
    "approle": _approle_auth,
    "jwt": _jwt_auth,
    "kubernetes": _kubernetes_auth,
}


def _mounts(given: Mapping[str, str]) -> VaultMounts:
    default = VaultMounts()
    mount = _matching(_MOUNT, "a mount path, e.g. secret")
    name = _matching(_SEGMENT, "a name of letters, digits, - and _")
    return VaultMounts(
        kv=_read(given, "GALLEY_VAULT_KV_MOUNT", mount, default.kv),
        kv_prefix=_read(given, "GALLEY_VAULT_KV_PREFIX", mount, default.kv_prefix),
        transit=_read(given, "GALLEY_VAULT_TRANSIT_MOUNT", mount, default.transit),
        transit_key=_read(given, "GALLEY_VAULT_TRANSIT_KEY", name, default.transit_key),
        database=_read(given, "GALLEY_VAULT_DATABASE_MOUNT", mount, default.database),
        pki=_read(given, "GALLEY_VAULT_PKI_MOUNT", mount, default.pki),
        token_role=_read(given, "GALLEY_VAULT_TOKEN_ROLE", name, default.token_role),
        policy=_read(given, "GALLEY_VAULT_POLICY", name, default.policy),
        proxy_policy=_read(given, "GALLEY_VAULT_PROXY_POLICY", name, default.proxy_policy),
    )


def _refuse_skip_verify(given: Mapping[str, str]) -> None:
    if _read(given, "VAULT_SKIP_VERIFY", _flag, False):
        raise ConfigError(
            "VAULT_SKIP_VERIFY is on: the proxy talks to no Vault that it cannot verify; "
            "unset it, and name the certificate authority in VAULT_CACERT"
        )


def _service_key(name: str, text: str) -> Secret:
    if len(text) < 16:
        raise ConfigError(f"{name} is too short: use 16 or more characters, e.g. the output of `openssl rand -hex 24`")
    return _header_secret(name, text)


def _header_secret(name: str, text: str) -> Secret:
    # The value is never shown, not even in part: this message may end in a log.
    if not _PRINTABLE.fullmatch(text) or len(text) > 8192:
        raise ConfigError(f"{name} holds a blank or a character outside ASCII: it must fit an HTTP header")
    return Secret(text)


def _plain(name: str, text: str) -> str:
    if len(text) > 512 or not _PRINTABLE.fullmatch(text):
        raise ConfigError(f"{name} is {text[:80]!r}: use printable characters without blanks")
    return text


def _path(name: str, text: str) -> Path:
    if "\0" in text:
        raise ConfigError(f"{name} is not a path")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _vault_address(name: str, text: str) -> str:
    url = _url(name, text)
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"{name} is {url!r}: Vault is spoken to over https (plain http only to a loopback address)")
    if parts.path:
        raise ConfigError(f"{name} is {url!r}: give the address without a path, e.g. https://vault.example.com:8200")
    return url


def _url(name: str, text: str) -> str:
    right = "use an http or https URL without query, e.g. https://vault.example.com:8200"
    try:
        url = urlsplit(text)
        port_ok = url.port is None or url.port > 0
    except ValueError:
        raise ConfigError(f"{name} is not a URL: {right}") from None
    if url.username or url.password:
        raise ConfigError(f"{name} holds a user name or password: {right}")
    if url.scheme not in {"http", "https"} or not url.hostname or not port_ok or url.query or url.fragment:
        raise ConfigError(f"{name} is {text!r}: {right}")
    return text.rstrip("/")


def _nets(name: str, text: str) -> tuple[Net, ...]:
    found: list[Net] = []
    for part in text.split(","):
        try:
            found.append(ipaddress.ip_network(part.strip(), strict=True))
        except ValueError:
            raise ConfigError(
                f"{name} holds {part.strip()!r}: use CIDRs with commas between, e.g. 10.1.0.0/16 "
                "(the bits after the prefix must be zero)"
            ) from None
    return tuple(found)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text not in choices:
            raise ConfigError(f"{name} is {text[:80]!r}: use {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return parse


def _flag(name: str, text: str) -> bool:
    # The spellings that Vault's own command takes.
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ConfigError(f"{name} is {text[:80]!r}: use true or false")


def _timeout(name: str, text: str) -> float:
    # Vault's own command takes a number of seconds or a Go duration.
    return _number(1, 300)(name, text.removesuffix("s"))


def _matching(pattern: re.Pattern[str], right: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if not pattern.fullmatch(text):
            raise ConfigError(f"{name} is {text[:80]!r}: use {right}")
        return text

    return parse


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{name} is {text[:80]!r}: use a whole number from {low} to {high}")
        return int(text)

    return parse


def _number(low: float, high: float) -> Callable[[str, str], float]:
    def parse(name: str, text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ConfigError(f"{name} is {text[:80]!r}: use a number from {low:g} to {high:g}")
        return float(text)

    return parse
