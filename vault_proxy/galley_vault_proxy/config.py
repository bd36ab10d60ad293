"""The file named by GALLEY_PROXY_CONFIG: the MCP servers that the proxy runs itself."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from galley_vault_proxy.errors import ConfigError, InvalidRequest
from galley_vault_proxy.http.validation import Strict, take

_LONGEST: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
_Argument = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]


@dataclass(frozen=True, slots=True)
class StdioServer:
    """One `[stdio.NAME]`, which an agent names as `stdio:NAME`. `credential_env` is where its credential goes."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    credential_env: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class _Table(Strict):
    command: Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
    args: Annotated[list[_Argument], Field(max_length=256)] = Field(default_factory=list)
    credential_env: _Variable | None = None
    env: dict[_Variable, _Argument] = Field(default_factory=dict)


class _File(Strict):
    stdio: dict[str, _Table] = Field(default_factory=dict)


def read_config(path: Path | None) -> Mapping[str, StdioServer]:
    """Return the stdio servers by name. Raises ConfigError, which names the file and the key."""
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            found = tomllib.loads(file.read(_LONGEST).decode())
        whole = take(_File, found)
    except OSError as error:
        raise ConfigError(f"GALLEY_PROXY_CONFIG: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"GALLEY_PROXY_CONFIG: {path} is not TOML: {error}") from None
    except InvalidRequest as error:
        raise ConfigError(f"GALLEY_PROXY_CONFIG: {path}: {error.message}") from None
    for name in whole.stdio:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"GALLEY_PROXY_CONFIG: {path}: stdio.{name}: use letters, digits, - and _ for the name")
    return {
        name: StdioServer(name, table.command, tuple(table.args), table.credential_env, table.env)
        for name, table in whole.stdio.items()
    }
