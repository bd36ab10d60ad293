"""The stores that the contract runs over, each behind the same few handles."""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.port import Material, SecretRef, SecretStore

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


@asynccontextmanager
async def embedded(home: Path) -> AsyncIterator[Bench]:
    def reopen() -> AbstractAsyncContextManager[SecretStore]:
        return EmbeddedStore.open(home)

    async with EmbeddedStore.open(home) as store:
        yield Bench(store, reopen, dynamic=False)
