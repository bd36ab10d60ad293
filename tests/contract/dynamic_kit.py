"""Vaults with a database behind them: the test server's own, or a real one with PostgreSQL."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.names import vault_name
from galley_vault_proxy.store.operator import Operator
from galley_vault_proxy.store.vault_adapter import Json
from galley_vault_proxy.store.vault_store import VaultStore

from tests.contract.secret_store_kit import VaultPlace, later, place_of, proxy_token, vault_store
from tests.vault_server.server import TestVault

_CREATE: Final = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
# Long enough that a session's end meets it on its way.
_SLOWLY: Final = "SELECT pg_sleep(0.03)"
_DROP: Final = 'DROP ROLE IF EXISTS "{{name}}"'


@dataclass(frozen=True)
class DynamicBench:
    """A store over a Vault that makes database users, and a way to see them."""

    store: VaultStore
    operator: Operator
    users: Callable[[], Awaitable[frozenset[str]]]
    vault: str

    async def open(self, session: str) -> str:
        await self.store.open_session(session, (self.vault,), later())
        return session

    async def until_users(self, fit: Callable[[frozenset[str]], bool]) -> None:
        """Vault makes and drops them as it likes, and nothing tells when. Bounded."""
        for _ in range(200):
            if fit(found := await self.users()):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"after 4 s these users are there: {sorted(found)}")

    async def no_users_left(self) -> None:
        await self.until_users(lambda users: not users)


@asynccontextmanager
async def over_test_vault(vault: TestVault, home: Path) -> AsyncIterator[DynamicBench]:
    async def users() -> frozenset[str]:
        return frozenset(vault.root.database().users)

    async with _bench(place_of(vault), home, "postgresql://galley@127.0.0.1:1/none", users) as bench:
        vault.run(lambda: setattr(vault.root.database(), "pause_s", 0.03))
        yield bench


@asynccontextmanager
async def over_real_vault(home: Path) -> AsyncIterator[DynamicBench]:
    address, token, postgres = (os.environ.get(name) for name in ("VAULT_ADDR", "VAULT_TOKEN", "TEST_POSTGRES_URL"))
    if not address or not token or not postgres:
        pytest.skip("VAULT_ADDR, VAULT_TOKEN and TEST_POSTGRES_URL name no Vault with a PostgreSQL")
    before = await asyncio.to_thread(_roles, postgres)

    async def users() -> frozenset[str]:
        return await asyncio.to_thread(_roles, postgres) - before

    async with _bench(VaultPlace(address, Secret(token)), home, postgres, users) as bench:
        yield bench


@asynccontextmanager
async def _bench(
    place: VaultPlace, home: Path, database: str, users: Callable[[], Awaitable[frozenset[str]]]
) -> AsyncIterator[DynamicBench]:
    vault = new_id("vlt")
    async with place.acting() as operator:
        settings = place.settings(await proxy_token(place))
        await prepare(operator, vault_name(vault), database)
        async with vault_store(settings, home) as store:
            yield DynamicBench(store, operator, users, vault)


async def prepare(operator: Operator, vault: str, database: str) -> None:
    mounts = await operator.read("sys/mounts")
    assert mounts is not None
    for engine in ("database", "pki"):
        if f"{engine}/" not in mounts.part("data"):
            await operator.write(f"sys/mounts/{engine}", {"type": engine})
            if engine == "pki":
                root: Json = {"common_name": "test", "key_type": "ec", "key_bits": 256}
                await operator.write("pki/root/generate/internal", root)
    url = urlsplit(database)
    config: Json = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": ["*"],
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{url.hostname}:{url.port}{url.path}?sslmode=disable",
        "username": url.username,
        "password": url.password or "none",
        "max_open_connections": 20,
    }
    await operator.write("database/config/pg", config)
    role: Json = {
        "db_name": "pg",
        "creation_statements": [_CREATE, _SLOWLY],
        "revocation_statements": [_DROP],
        "default_ttl": "10m",
        "max_ttl": "1h",
    }
    await operator.write(f"database/roles/galley-{vault}-reader", role)
    for name, leased in (("web", True), ("unleased", False)):
        role = {"allow_any_name": True, "generate_lease": leased, "key_type": "ec", "key_bits": 256, "max_ttl": "1h"}
        await operator.write(f"pki/roles/galley-{vault}-{name}", role)


def _roles(postgres: str) -> frozenset[str]:
    query = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'"
    run = subprocess.run(["psql", postgres, "-At", "-c", query], capture_output=True, text=True, timeout=10, check=True)
    return frozenset(run.stdout.split())
