"""Settings: every environment variable that Galley reads, read once, checked, and frozen.

`CATALOGUE` is the one table of names; the reference page of settings is made from it, and a name with the prefix
`GALLEY_` that is not in it is refused, because a typo in a setting must not pass in silence.
No file and no network is touched here.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

from galley_server.errors import ConfigError
from galley_server.home import home_of
from galley_server.secret import Secret

SandboxChoice: TypeAlias = Literal["auto", "docker", "bubblewrap"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
Value = TypeVar("Value")

MEBIBYTE: Final = 1 << 20
_OTHERS: Final = ("GALLEY_PROXY_", "GALLEY_VAULT_")
"""Settings of `galley-vault-proxy`, which checks them itself: both programs may share an environment."""
_NOT_THE_PROXYS: Final = ("ANTHROPIC_", "GALLEY_")
"""How variables begin that a vault proxy which is started here does not get, its own ones excepted."""
_PRINTABLE: Final = re.compile(r"[!-~]+")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_RUNTIME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the reference page."""

    name: str
    default: str
    doc: str


CATALOGUE: Final = (
    Setting("GALLEY_HOME", "the platform's data directory", "Directory of everything that Galley keeps."),
    Setting(
        "GALLEY_API_KEY",
        "generated into `$GALLEY_HOME/api_key`",
        "Key that every client must send, as `x-api-key` or as a bearer token. 16 or more printable characters.",
    ),
    Setting("GALLEY_MODEL_API_KEY", "`ANTHROPIC_API_KEY`", "Key of the model endpoint."),
    Setting(
        "GALLEY_MODEL_BASE_URL",
        "`ANTHROPIC_BASE_URL`, else `https://api.anthropic.com`",
        "Base URL of any endpoint that speaks the Messages API. Not this server's own address.",
    ),
    Setting("GALLEY_MODEL", "`claude-opus-5-5`", "Model of the default agent."),
    Setting("ANTHROPIC_API_KEY", "", "Read when `GALLEY_MODEL_API_KEY` is not set, as the `anthropic` SDK reads it."),
    Setting("ANTHROPIC_AUTH_TOKEN", "", "Bearer token of the model endpoint, read when neither key above is set."),
    Setting("ANTHROPIC_BASE_URL", "", "Read when `GALLEY_MODEL_BASE_URL` is not set."),
    Setting(
        "GALLEY_SANDBOX",
        "`auto`",
        "`docker`, `bubblewrap`, or `auto`: Docker if a probe container really ran, else bubblewrap.",
    ),
    Setting("GALLEY_SANDBOX_IMAGE", "an image that Galley builds", "Container image of Docker sandboxes."),
    Setting("DOCKER_HOST", "`unix:///var/run/docker.sock`", "Address of the Docker engine, `unix://` or `tcp://`."),
    Setting("GALLEY_SANDBOX_RUNTIME", "the engine's default", "OCI runtime of Docker sandboxes by name, e.g. `runsc`."),
    Setting("GALLEY_SANDBOX_MEMORY_MB", "`2048`", "Memory of one sandbox in MiB, 64 to 1048576."),
    Setting("GALLEY_SANDBOX_CPUS", "`2`", "CPUs of one sandbox, 0.1 to 1024."),
    Setting("GALLEY_SANDBOX_PIDS", "`512`", "Processes and threads in one sandbox, 32 to 1000000."),
    Setting("GALLEY_SANDBOX_DISK_MB", "`1024`", "Disk of one sandbox's workspace in MiB, 16 to 1048576."),
    Setting(
        "GALLEY_SANDBOX_WALL_S",
        "`600`",
        "Seconds that one tool call may run, whatever timeout it asked for, 1 to 86400.",
    ),
    Setting(
        "GALLEY_BROKER",
        "`auto`",
        "The vault proxy, which is the way of sandboxes to the network and of agents to MCP servers: `auto` (it is "
        "started and ended with the server), `off` (there is none of that), or the directory with the sockets "
        "`proxy.sock` and `egress.sock` of one that runs by itself.",
    ),
    Setting(
        "GALLEY_PROXY_HOME",
        "`$GALLEY_HOME/vault_proxy`",
        "Home of the vault proxy. All its settings can be given here too, and `VAULT_ADDR` with those that go with it.",
    ),
    Setting(
        "GALLEY_PROXY_KEY", "`$GALLEY_PROXY_HOME/service_key`", "Key of the vault proxy, if it is not in its home."
    ),
    Setting("GALLEY_PROXY_KEY_FILE", "", "A file that holds that key, in place of `GALLEY_PROXY_KEY`."),
    Setting(
        "GALLEY_LIMITS",
        "every limit at its default",
        "`off`, or a comma-separated list of `name=value`: `body_mb` (size of a request, 32), `file_mb` (size of an "
        "uploaded file, 500), `tool_rounds` (model requests in one turn, 500). `name=off` lifts one.",
    ),
    Setting("GALLEY_LOG_LEVEL", "`info`", "`debug`, `info`, `warning` or `error`: what the server prints on stderr."),
    Setting("GALLEY_URL", "", "Read by `galley mcp` only: the server to use instead of the one of `GALLEY_HOME`."),
)
NAMES: Final = frozenset(setting.name for setting in CATALOGUE)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Where models are asked. At most one of `api_key` and `auth_token` is set, as in the SDK."""

    api_key: Secret | None = None
    auth_token: Secret | None = None
    base_url: str = "https://api.anthropic.com"
    default: str = "claude-opus-5-5"


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    choice: SandboxChoice = "auto"
    engine: str | None = None
    image: str | None = None
    runtime: str | None = None
    memory_mb: int = 2048
    cpus: float = 2.0
    pids: int = 512
    disk_mb: int = 1024
    wall_s: float = 600.0


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the vault proxy is. `sockets` None: it is started here, with this `environ`. `key` a path: its file."""

    home: Path
    sockets: Path | None = None
    key: Secret | Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """None lifts a limit."""

    body_mb: int | None = 32
    file_mb: int | None = 500
    tool_rounds: int | None = 500

    @property
    def body_bytes(self) -> int | None:
        return None if self.body_mb is None else self.body_mb * MEBIBYTE

    @property
    def file_bytes(self) -> int | None:
        return None if self.file_mb is None else self.file_mb * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    api_key: Secret | None = None
    model: ModelSettings = ModelSettings()
    sandbox: SandboxSettings = SandboxSettings()
    broker: BrokerSettings | None = None
    """None: there is none."""
    limits: Limits = Limits()
    log_level: LogLevel = "info"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and check every setting. A variable that is set to nothing counts as not set.

        Raises ConfigError, which names the setting and says what would be right.
        """
        _refuse_unknown(environ)
        given = {name: environ[name].strip() for name in NAMES if environ.get(name, "").strip()}
        return cls(
            home=home_of(environ),
            api_key=_read(given, "GALLEY_API_KEY", _api_key, None),
            model=_model(given),
            sandbox=_sandbox(given),
            broker=_broker(given, environ),
            limits=_read(given, "GALLEY_LIMITS", _limits, Limits()),
            log_level=_read(given, "GALLEY_LOG_LEVEL", _log_level, "info"),
        )


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith("GALLEY_") and not name.startswith(_OTHERS) and name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else "see the list of settings in docs/reference/settings.md"
            raise ConfigError(f"{name} is not a setting of Galley: {hint}")


def _read(given: Mapping[str, str], name: str, parse: Callable[[str, str], Value], default: Value) -> Value:
    return parse(name, given[name]) if name in given else default


def _model(given: Mapping[str, str]) -> ModelSettings:
    key_name = "GALLEY_MODEL_API_KEY" if "GALLEY_MODEL_API_KEY" in given else "ANTHROPIC_API_KEY"
    api_key = _read(given, key_name, _header_secret, None)
    auth_token = None if api_key else _read(given, "ANTHROPIC_AUTH_TOKEN", _header_secret, None)
    url_name = "GALLEY_MODEL_BASE_URL" if "GALLEY_MODEL_BASE_URL" in given else "ANTHROPIC_BASE_URL"
    return ModelSettings(
        api_key=api_key,
        auth_token=auth_token,
        base_url=_read(given, url_name, _base_url, ModelSettings().base_url),
        default=_read(given, "GALLEY_MODEL", _model_name, ModelSettings().default),
    )


def _sandbox(given: Mapping[str, str]) -> SandboxSettings:
    default = SandboxSettings()
    return SandboxSettings(
        choice=_read(given, "GALLEY_SANDBOX", _sandbox_choice, default.choice),
        # Another program's variable: an address that is no use here is the driver's to tell, no reason not to start.
        engine=_read(given, "DOCKER_HOST", _matching(_PRINTABLE, "an address without blanks"), default.engine),
        image=_read(given, "GALLEY_SANDBOX_IMAGE", _matching(_IMAGE, "an image name, e.g. debian:13"), default.image),
        runtime=_read(
            given, "GALLEY_SANDBOX_RUNTIME", _matching(_RUNTIME, "a runtime's name, e.g. runsc"), default.runtime
        ),
        memory_mb=_read(given, "GALLEY_SANDBOX_MEMORY_MB", _whole(64, MEBIBYTE), default.memory_mb),
        cpus=_read(given, "GALLEY_SANDBOX_CPUS", _number(0.1, 1024), default.cpus),
        pids=_read(given, "GALLEY_SANDBOX_PIDS", _whole(32, 1_000_000), default.pids),
        disk_mb=_read(given, "GALLEY_SANDBOX_DISK_MB", _whole(16, MEBIBYTE), default.disk_mb),
        wall_s=_read(given, "GALLEY_SANDBOX_WALL_S", _number(1, 86_400), default.wall_s),
    )


def _broker(given: Mapping[str, str], environ: Mapping[str, str]) -> BrokerSettings | None:
    choice = given.get("GALLEY_BROKER", "auto")
    if choice == "off":
        return None
    home = _read(given, "GALLEY_PROXY_HOME", _folder, home_of(environ) / "vault_proxy")
    return BrokerSettings(
        home=home,
        sockets=None if choice == "auto" else _folder("GALLEY_BROKER", choice),
        key=_proxy_key(given),
        environ=_proxys(environ) | {"GALLEY_PROXY_HOME": str(home)},
    )


def _proxy_key(given: Mapping[str, str]) -> Secret | Path | None:
    if "GALLEY_PROXY_KEY" in given and "GALLEY_PROXY_KEY_FILE" in given:
        raise ConfigError("GALLEY_PROXY_KEY and GALLEY_PROXY_KEY_FILE are both set: set one")
    file = _read(given, "GALLEY_PROXY_KEY_FILE", _folder, None)
    return _read(given, "GALLEY_PROXY_KEY", _api_key, None) if file is None else file


def _proxys(environ: Mapping[str, str]) -> dict[str, str]:
    """What a vault proxy that is started here gets: its own settings and the surroundings, and no key of ours."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_OTHERS) or not name.startswith(_NOT_THE_PROXYS)
    }


def _folder(name: str, text: str) -> Path:
    path = Path(os.path.expanduser(text))
    if not path.is_absolute():
        raise ConfigError(f"{name} is {text!r}: use an absolute path, or auto or off")
    return path


def _api_key(name: str, text: str) -> Secret:
    if len(text) < 16:
        raise ConfigError(f"{name} is too short: use 16 or more characters, e.g. the output of `openssl rand -hex 24`")
    return _header_secret(name, text)


def _header_secret(name: str, text: str) -> Secret:
    # The value is never shown, not even in part: this message may end in a log.
    if not _PRINTABLE.fullmatch(text):
        raise ConfigError(f"{name} holds a blank or a character outside ASCII: it must fit an HTTP header")
    return Secret(text)


def _base_url(name: str, text: str) -> str:
    right = "use an http or https URL without query, e.g. https://api.anthropic.com"
    try:
        url = urlsplit(text)
        port_ok = url.port is None or url.port > 0
    except ValueError:
        raise ConfigError(f"{name} is not a URL: {right}") from None
    if url.username or url.password:
        raise ConfigError(f"{name} holds a user name or password: put the key into GALLEY_MODEL_API_KEY instead")
    if url.scheme not in {"http", "https"} or not url.hostname or not port_ok or url.query or url.fragment:
        raise ConfigError(f"{name} is {text!r}: {right}")
    return text.rstrip("/")


def _model_name(name: str, text: str) -> str:
    if len(text) > 256 or not _PRINTABLE.fullmatch(text):
        raise ConfigError(f"{name} is {text[:80]!r}: use a model id without blanks, e.g. claude-opus-5-5")
    return text


def _sandbox_choice(name: str, text: str) -> SandboxChoice:
    for choice in get_args(SandboxChoice):
        if text == choice:
            return choice  # type: ignore[no-any-return]  # get_args is typed Any
    raise ConfigError(f"{name} is {text!r}: use auto, docker or bubblewrap")


def _log_level(name: str, text: str) -> LogLevel:
    for level in get_args(LogLevel):
        if text == level:
            return level  # type: ignore[no-any-return]  # get_args is typed Any
    raise ConfigError(f"{name} is {text!r}: use debug, info, warning or error")


def _matching(pattern: re.Pattern[str], right: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if not pattern.fullmatch(text):
            raise ConfigError(f"{name} is {text!r}: use {right}")
        return text

    return parse


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{name} is {text!r}: use a whole number from {low} to {high}")
        return int(text)

    return parse


def _number(low: float, high: float) -> Callable[[str, str], float]:
    def parse(name: str, text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ConfigError(f"{name} is {text!r}: use a number from {low:g} to {high:g}")
        return float(text)

    return parse


def _limits(name: str, text: str) -> Limits:
    known = tuple(field.name for field in fields(Limits))
    if text == "off":
        return Limits(**dict.fromkeys(known))
    chosen: dict[str, int | None] = {}
    for part in text.split(","):
        limit, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"{name} holds {part.strip()!r}: use off, or name=value with commas between")
        if limit not in known:
            raise ConfigError(f"{name} names {limit!r}: the limits are {', '.join(known)}")
        if limit in chosen:
            raise ConfigError(f"{name} names {limit} twice")
        chosen[limit] = None if value == "off" else _whole(1, MEBIBYTE)(f"{limit} in {name}", value)
    return Limits(**chosen)
