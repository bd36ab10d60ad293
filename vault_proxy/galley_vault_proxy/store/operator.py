"""Vault as an operator sees it: with the operator's own token, for commands that a person runs."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultSettings, vault_settings
from galley_vault_proxy.store.vault_adapter import Answer, Json, Method, Request
from galley_vault_proxy.store.vault_client import VaultClient
from galley_vault_proxy.store.vault_fault import Invalid, Missing, Refused


def operators_settings(environ: Mapping[str, str]) -> tuple[VaultSettings, Secret]:
    """The settings with VAULT_TOKEN as the operator's token, however the proxy itself logs in. Raises ConfigError."""
    token = environ.get("VAULT_TOKEN", "").strip()
    if not token:
        raise ConfigError("VAULT_TOKEN is not set: this command needs an operator's token, not the proxy's own")
    # How the proxy logs in is not the command's business, and may not be set yet.
    settings = vault_settings({**environ, "GALLEY_VAULT_AUTH": "token"})
    if settings is None:
        raise ConfigError("VAULT_ADDR is not set: which Vault?")
    return settings, Secret(token)


def approle_mount(settings: VaultSettings) -> str:
    return "approle" if settings.auth_mount == "token" else settings.auth_mount


def audit_header_path(name: str) -> str:
    return f"sys/config/auditing/request-headers/{name}"


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")


@dataclass(frozen=True, slots=True)
class Operator:
    """Raises VaultFault where it says nothing else."""

    client: VaultClient
    token: Secret

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: VaultSettings, token: Secret) -> AsyncIterator[Self]:
        async with VaultClient.open(settings) as client:
            yield cls(client, token)

    async def read(self, path: str, *, method: Method = "get", namespaced: bool = True) -> Answer | None:
        """None when there is nothing. Raises ConfigError when the token may not.

        Not `namespaced`: what concerns the whole server can be asked for in the root namespace only.
        """
        try:
            return await self._send(Request(method, path, f"read {path}", again=True, namespaced=namespaced))
        except Missing:
            return None

    async def read_audit_header(self, name: str) -> Answer | None:
        """Vault says 400, and not 404, when it is not recorded."""
        try:
            return await self.read(audit_header_path(name), namespaced=False)
        except Invalid:
            return None

    async def write(
        self,
        path: str,
        body: Json,
        *,
        method: Method = "post",
        namespaced: bool = True,
        wrap_ttl_s: int | None = None,
    ) -> Answer:
        return await self._send(
            Request(method, path, f"write {path}", body, namespaced=namespaced, wrap_ttl_s=wrap_ttl_s)
        )

    async def delete(self, path: str) -> None:
        await self._send(Request("delete", path, f"delete {path}", again=True))

    async def _send(self, request: Request) -> Answer:
        try:
            return await self.client.send(replace(request, token=self.token))
        except Refused:
            raise ConfigError(
                f"VAULT_TOKEN may not {request.what}: use an operator's token, made in VAULT_NAMESPACE if that is set"
            ) from None
