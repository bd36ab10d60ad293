"""Credentials over each secret store: what a door is given, how soon it changes, and what stays behind."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials.bodies import read
from galley_vault_proxy.credentials.shapes import CredentialCreate, CredentialUpdate, VaultCreate
from galley_vault_proxy.errors import SecretMissing
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.oauth.assembly import SCHEMAS, CredentialPart, open_credentials
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State
from galley_vault_proxy.store import leases
from galley_vault_proxy.store.port import SecretStore
from galley_vault_proxy.store.vault_store import VaultStore

from tests.contract.secret_store_kit import VaultPlace, place_of, proxy_token
from tests.integration.proxy_credentials_kit import LOOPBACK, ONCE_KEY, Broker, Clock, broker, embedded
from tests.integration.proxy_oauth_server import Client, servers
from tests.vault_server.server import TestVault, running

pytestmark = pytest.mark.anyio

URL = "https://mcp.example.com/mcp"
Opener = Callable[[Path, State, Clock], AbstractAsyncContextManager[SecretStore]]


@pytest.fixture(scope="module")
def vault_server() -> Iterator[TestVault]:
    with running() as server:
        yield server.vault


@dataclass(frozen=True)
class Over:
    """A broker, what opens its store again, and, over the test server, that server."""

    broker: Broker
    opener: Opener
    vault: TestVault | None

    @contextlib.asynccontextmanager
    async def elsewhere(self) -> AsyncIterator[tuple[CredentialPart, SecretStore]]:
        """What another process of the same home would see."""
        home, clock = self.broker.home, Clock()
        async with (
            State.open(home / "state.db", [*SCHEMAS, leases.SCHEMA]) as state,
            Audit.open(home / "audit-2", max_bytes=8 << 20) as audit,
            self.opener(home, state, clock) as store,
            open_credentials(
                state, store, audit, Netguard(LOOPBACK), key=ONCE_KEY, base_url=lambda: "http://127.0.0.1:1"
            ) as part,
        ):
            yield part, store


def over(place: VaultPlace, token: Secret) -> Opener:
    def open_(home: Path, state: State, clock: Clock) -> AbstractAsyncContextManager[SecretStore]:
        return VaultStore.open(place.settings(token), state, cache_ttl_s=30.0, drain_s=5.0)

    return open_


@pytest.fixture(params=["embedded", "test_vault", "real_vault"])
async def at(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Over]:
    vault: TestVault | None = None
    opener: Opener = embedded
    if request.param == "test_vault":
        vault = request.getfixturevalue("vault_server")
        place = place_of(vault)
        opener = over(place, await proxy_token(place))
    if request.param == "real_vault":
        address, token = os.environ.get("VAULT_ADDR"), os.environ.get("VAULT_TOKEN")
        if not address or not token:
            pytest.skip("VAULT_ADDR and VAULT_TOKEN name no Vault")
        place = VaultPlace(address, Secret(token))
        opener = over(place, await proxy_token(place))
    async with broker(tmp_path / "home", store=opener) as opened:
        yield Over(opened, opener, vault)
    if vault is not None:
        assert vault.unsupported == []


async def a_vault(at: Over) -> str:
    return (await at.broker.part.vaults.create(VaultCreate(display_name="Alice"))).id


async def made(at: Over, vault_id: str, **auth: Any) -> str:
    asked = read(CredentialCreate, json.dumps({"auth": auth}).encode())
    return (await at.broker.part.credentials.create(vault_id, asked)).id


async def bearer(at: Over, vault_id: str, token: str = "t1") -> str:
    return await made(at, vault_id, type="static_bearer", mcp_server_url=URL, token=token)


async def rotate(at: Over, vault_id: str, credential_id: str, token: str) -> None:
    asked = read(CredentialUpdate, json.dumps({"auth": {"type": "static_bearer", "token": token}}).encode())
    await at.broker.part.credentials.update(vault_id, credential_id, asked)


async def given(part: CredentialPart, vault_id: str, url: str = URL) -> str | None:
    found = await part.source.for_mcp("sesn_1", [vault_id], url)
    return None if found is None else found.value.reveal()


async def test_a_credential_is_given_rotated_and_gone(at: Over) -> None:
    vault_id = await a_vault(at)
    await at.broker.session(vault_id)
    credential_id = await bearer(at, vault_id)
    assert await given(at.broker.part, vault_id) == "Bearer t1"
    await rotate(at, vault_id, credential_id, "t2")
    assert await given(at.broker.part, vault_id) == "Bearer t2"
    ref = (await at.broker.part.credentials.usable(vault_id, credential_id)).ref
    await at.broker.part.credentials.archive(vault_id, credential_id)
    assert await given(at.broker.part, vault_id) is None
    with pytest.raises(SecretMissing):
        await at.broker.store.read_own(ref)


async def test_another_process_gives_the_new_one_within_a_second(at: Over) -> None:
    vault_id = await a_vault(at)
    credential_id = await bearer(at, vault_id)
    async with at.elsewhere() as (part, store):
        await store.open_session("sesn_1", [vault_id], datetime.now(UTC) + timedelta(hours=1))
        assert await given(part, vault_id) == "Bearer t1"
        await rotate(at, vault_id, credential_id, "t2")
        async with asyncio.timeout(1):
            while True:
                if await given(part, vault_id) == "Bearer t2":
                    break
                await asyncio.sleep(0.01)
        await at.broker.part.vaults.archive(vault_id)
        async with asyncio.timeout(1):
            while True:
                if await given(part, vault_id) is None:
                    break
                await asyncio.sleep(0.01)


async def test_what_was_read_a_moment_ago_is_not_asked_for_again(at: Over) -> None:
    vault_id = await a_vault(at)
    await at.broker.session(vault_id)
    await bearer(at, vault_id)
    await given(at.broker.part, vault_id)
    before = len(at.vault.seen) if at.vault else 0
    for _ in range(20):
        assert await given(at.broker.part, vault_id) == "Bearer t1"
    if at.vault is not None:
        assert len(at.vault.seen) == before


async def test_tokens_are_renewed_in_the_store(at: Over) -> None:
    async with servers() as found:
        found.auth.add(Client("client-1", [], "client_secret_basic", "cs"), access="at-old", refresh="rt-old")
        vault_id = await a_vault(at)
        await at.broker.session(vault_id)
        credential_id = await made(
            at,
            vault_id,
            type="mcp_oauth",
            mcp_server_url=found.mcp.url,
            access_token="at-old",
            expires_at=(datetime.now(UTC) + timedelta(seconds=61)).isoformat(),
            refresh={
                "client_id": "client-1",
                "refresh_token": "rt-old",
                "token_endpoint": f"{found.auth.base}/token",
                "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "cs"},
            },
        )
        at.broker.clock.ahead = timedelta(seconds=59)
        asked = await asyncio.gather(*(given(at.broker.part, vault_id, found.mcp.url) for _ in range(10)))
        assert len(set(asked)) == 1
        assert len(found.auth.token_requests) == 1
        assert found.auth.is_good(str(asked[0]).removeprefix("Bearer "))
        ref = (await at.broker.part.credentials.usable(vault_id, credential_id)).ref
        stored = (await at.broker.store.read_own(ref)).fields
        assert stored["refresh_token"].reveal() == found.auth.grants[0].refresh
        assert stored["client_secret"].reveal() == "cs"


async def test_a_login_is_sealed_and_stored(at: Over) -> None:
    async with servers() as found, at.broker.http() as client:
        vault_id = await a_vault(at)
        await at.broker.session(vault_id)
        begun = await client.post("/v1/oauth/logins", json={"vault_id": vault_id, "mcp_server_url": found.mcp.url})
        assert begun.status_code == 200, begun.text
        assert (await found.consent(begun.json()["url"])).status_code == 200
        token = await given(at.broker.part, vault_id, found.mcp.url)
        assert found.auth.is_good(str(token).removeprefix("Bearer "))


async def test_deleting_a_vault_leaves_nothing_of_it(at: Over) -> None:
    vault_id = await a_vault(at)
    credential_id = await bearer(at, vault_id)
    ref = (await at.broker.part.credentials.usable(vault_id, credential_id)).ref
    await at.broker.part.vaults.delete(vault_id)
    with pytest.raises(SecretMissing):
        await at.broker.store.read_own(ref)
