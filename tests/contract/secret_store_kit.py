"""The stores that the contract runs over, each behind the same few handles."""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from galley_vault_proxy.bootstrap import bootstrap
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import TokenAuth, VaultSettings
from galley_vault_proxy.state import State
from galley_vault_proxy.store import leases
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.operator import Operator
from galley_vault_proxy.store.port import Material, SecretRef, SecretStore
from galley_vault_proxy.store.vault_adapter import Json, text_of
from galley_vault_proxy.store.vault_setup import Wanted
from galley_vault_proxy.store.vault_store import VaultStore

from tests.vault_server.server import TestVault

HOUR: Final = timedelta(hours=1)


class Opener(Protocol):
    """Opens the same store again and again, as restarts and other processes do."""

    def __call__(self) -> AbstractAsyncContextManager[SecretStore]: ...


@dataclass(frozen=True)
class Bench:
    """A store to test, and a fresh vault in it."""

    store: SecretStore
    reopen: Opener
    dynamic: bool
    vault: str = field(default_factory=lambda: new_id("vlt"))
    other_vault: str = field(default_factory=lambda: new_id("vlt"))
    session: str = field(default_factory=lambda: f"sesn_{secrets.token_hex(8)}")

    def ref(self, vault: str | None = None) -> SecretRef:
        return SecretRef(vault or self.vault, new_id("vcrd"))

    async def open(self, *vaults: str, session: str | None = None) -> str:
        await self.store.open_session(session or self.session, vaults or (self.vault,), later())
        return session or self.session


def later(by: timedelta = HOUR) -> datetime:
    return datetime.now(UTC) + by


def fields(**values: str) -> Mapping[str, Secret]:
    return {name: Secret(value) for name, value in values.items()}


def revealed(material: Material) -> dict[str, str]:
    return {name: value.reveal() for name, value in material.fields.items()}


@dataclass(frozen=True)
class VaultPlace:
    """A Vault, and a token of its operator."""

    address: str
    operator: Secret

    def settings(self, token: Secret | None = None, *, timeout_s: float = 10.0) -> VaultSettings:
        return VaultSettings(self.address, TokenAuth(token or self.operator), "token", timeout_s=timeout_s)

    def acting(self) -> AbstractAsyncContextManager[Operator]:
        """What only an operator may do."""
        return Operator.open(self.settings(), self.operator)


def place_of(vault: TestVault) -> VaultPlace:
    return VaultPlace(vault.address, Secret(vault.root_token))


async def proxy_token(place: VaultPlace, *, ttl: str = "1h") -> Secret:
    """Bootstrap the Vault, and make a token that may do what the proxy's own may, and nothing else."""
    settings = place.settings()
    await bootstrap(settings, place.operator, Wanted(), write=True, say=lambda _: None)
    async with Operator.open(settings, place.operator) as operator:
        body: Json = {"policies": [settings.mounts.proxy_policy], "no_default_policy": True, "ttl": ttl}
        answer = await operator.write("auth/token/create-orphan", body)
    return Secret(text_of(answer.part("auth"), "client_token"))


@asynccontextmanager
async def vault_store(
    settings: VaultSettings, home: Path, *, cache_ttl_s: float = 30.0, drain_s: float = 5.0
) -> AsyncIterator[VaultStore]:
    async with (
        State.open(home / "state.db", [leases.SCHEMA]) as state,
        VaultStore.open(settings, state, cache_ttl_s=cache_ttl_s, drain_s=drain_s) as store,
    ):
        yield store


@asynccontextmanager
async def over_vault(place: VaultPlace, home: Path) -> AsyncIterator[Bench]:
    settings = place.settings(await proxy_token(place))

    def reopen() -> AbstractAsyncContextManager[SecretStore]:
        return vault_store(settings, home)

    async with vault_store(settings, home) as store:
        yield Bench(store, reopen, dynamic=True)


@asynccontextmanager
async def embedded(home: Path) -> AsyncIterator[Bench]:
    def reopen() -> AbstractAsyncContextManager[SecretStore]:
        return EmbeddedStore.open(home)

    async with EmbeddedStore.open(home) as store:
        yield Bench(store, reopen, dynamic=False)
