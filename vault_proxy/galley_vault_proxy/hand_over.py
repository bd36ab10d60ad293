"""`galley-vault-proxy hand-over`: puts an AppRole login for the proxy into files, as whoever may make secret ids.

The secret id is wrapped: it can be opened once, by the proxy, and who opens it first is noticed by who comes second.
"""

import argparse
import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultSettings
from galley_vault_proxy.store.operator import Operator, approle_mount, operators_settings, print_line
from galley_vault_proxy.store.proxy_identity import fault_to_error
from galley_vault_proxy.store.vault_adapter import text_of
from galley_vault_proxy.store.vault_fault import VaultFault

ROLE_ID: Final = "role_id"
SECRET_ID: Final = "secret_id"
_WRAPPED_S: Final = 300


@dataclass(frozen=True, slots=True)
class AppRoleLogin:
    """What logs the proxy in. `secret_id` is a wrapping token, unless it was asked for as it is."""

    role_id: str
    secret_id: Secret


async def make(settings: VaultSettings, operator: Secret, role: str, *, wrap_ttl_s: int | None) -> AppRoleLogin:
    """Raises ConfigError when the token may not or the role is not there, StoreUnavailable when Vault is not well."""
    path = f"auth/{approle_mount(settings)}/role/{role}"
    try:
        async with Operator.open(settings, operator) as vault:
            found = await vault.read(f"{path}/role-id")
            if found is None:
                raise ConfigError(
                    f"Vault has no {path}: run `galley-vault-proxy bootstrap --approle {role}` first; "
                    "is VAULT_NAMESPACE right?"
                )
            made = await vault.write(f"{path}/secret-id", {}, wrap_ttl_s=wrap_ttl_s)
    except VaultFault as fault:
        raise fault_to_error(fault) from None
    secret_id = (
        text_of(made.part("data"), "secret_id") if wrap_ttl_s is None else text_of(made.part("wrap_info"), "token")
    )
    return AppRoleLogin(text_of(found.part("data"), "role_id"), Secret(secret_id))


def put(login: AppRoleLogin, folder: Path) -> None:
    """Write the two files, each whole or not at all, for their owner alone. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(folder / ROLE_ID, login.role_id)
        _replace(folder / SECRET_ID, login.secret_id.reveal())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    asked = _parser().parse_args(argv)
    settings, operator = operators_settings(environ)
    login = asyncio.run(make(settings, operator, asked.approle, wrap_ttl_s=None if asked.plain else asked.wrap_ttl))
    put(login, asked.folder)
    print_line(f"GALLEY_VAULT_AUTH=approle GALLEY_VAULT_ROLE_ID_FILE={asked.folder / ROLE_ID}")
    print_line(
        f"GALLEY_VAULT_SECRET_ID_FILE={asked.folder / SECRET_ID} "
        f"GALLEY_VAULT_SECRET_ID_WRAPPED={'false' if asked.plain else 'true'}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galley-vault-proxy hand-over",
        description="Write a login for the proxy into FOLDER: role_id, and a secret_id that opens once. Needs "
        "VAULT_ADDR, and a VAULT_TOKEN that may make secret ids for the role.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=_folder)
    parser.add_argument("--approle", metavar="NAME", default="galley", help="the role (default %(default)s)")
    parser.add_argument(
        "--wrap-ttl", metavar="S", type=_seconds, default=_WRAPPED_S, help="how long it may lie (default %(default)s)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="the secret id itself: it opens again and again, also for who copies it"
    )
    return parser


def _folder(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 86_400):
        raise argparse.ArgumentTypeError(f"{text!r}: use seconds, 1 to 86400")
    return int(text)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
