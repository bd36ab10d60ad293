"""The file named by GALLEY_PROXY_CONFIG: the MCP servers that the proxy runs itself."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, StringConstraints

from galley_vault_proxy.errors import ConfigError, InvalidRequest
from galley_vault_proxy.http.validation import Strict, take

_LONGEST: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
_Argument = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
_Folder = Annotated[str, StringConstraints(max_length=4096, pattern=r"^/[^\x00]*$")]
Protocol: TypeAlias = Literal["auto", "legacy", "modern"]
"""Which era of MCP a server speaks; `auto` finds it out, which some servers do not survive."""


@dataclass(frozen=True, slots=True)
class StdioServer:
    """One `[stdio.NAME]`, which an agent names as `stdio:NAME`. `credential_env` is where its credential goes.

    It runs in a sandbox: `read` and `write` are the paths it sees beside the system's, `network` whether it has one.
    """

    name: str
    command: str
    args: tuple[str, ...] = ()
    credential_env: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    network: bool = True
    protocol: Protocol = "auto"


class _Table(Strict):
    command: Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
    args: Annotated[list[_Argument], Field(max_length=256)] = Field(default_factory=list)
    credential_env: _Variable | None = None
    env: dict[_Variable, _Argument] = Field(default_factory=dict)
    read: Annotated[list[_Folder], Field(max_length=64)] = Field(default_factory=list)
    write: Annotated[list[_Folder], Field(max_length=64)] = Field(default_factory=list)
    network: bool = True
    protocol: Protocol = "auto"


class _File(Strict):
    """`protocols`: the era of a server behind a URL, where it is not to be found out."""

    stdio: dict[str, _Table] = Field(default_factory=dict)
    protocols: dict[str, Protocol] = Field(default_factory=dict)


def read_config(path: Path | None) -> Mapping[str, StdioServer]:
    """Return the stdio servers by name. Raises ConfigError, which names the file and the key."""
    if path is None:
        return {}
    whole = _whole(path)
    for name in whole.stdio:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"GALLEY_PROXY_CONFIG: {path}: stdio.{name}: use letters, digits, - and _ for the name")
    return {
        name: StdioServer(
            name,
            table.command,
            tuple(table.args),
            table.credential_env,
            table.env,
            read=tuple(table.read),
            write=tuple(table.write),
            network=table.network,
            protocol=table.protocol,
        )
        for name, table in whole.stdio.items()
    }


def read_protocols(path: Path | None) -> Mapping[str, Protocol]:
    """Return the protocols that are set for URLs. Raises ConfigError."""
    return {} if path is None else _whole(path).protocols


def _whole(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            found = tomllib.loads(file.read(_LONGEST).decode())
        return take(_File, found)
    except OSError as error:
        raise ConfigError(f"GALLEY_PROXY_CONFIG: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"GALLEY_PROXY_CONFIG: {path} is not TOML: {error}") from None
    except InvalidRequest as error:
        raise ConfigError(f"GALLEY_PROXY_CONFIG: {path}: {error.message}") from None
