"""A secret store that fails: nothing that was purged stays, and nothing that was not wanted comes to be."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import pytest
from galley_vault_proxy.credentials import rows
from galley_vault_proxy.credentials.shapes import CredentialCreate
from galley_vault_proxy.errors import SecretMissing, StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.port import SecretRef, SecretStore

from tests.integration.proxy_credentials_kit import Broker, broker, everything_below

pytestmark = pytest.mark.anyio

BEARER: Any = {"type": "static_bearer", "mcp_server_url": "https://mcp.example.com/mcp", "token": "tok-planted"}
HEADER = {"idempotency-key": "k1"}


class Sealable:
    """A store that is sealed when a test says so, and may be held in the middle of a write."""

    def __init__(self, store: SecretStore) -> None:
        self.store = store
        self.sealed = False
        self.hold: asyncio.Event | None = None
        self.refs: list[SecretRef] = []
        self.expected = 1
        self.arrived = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, expected: int | None) -> int:
        self._check()
        self.refs.append(ref)
        version = await self.store.write(ref, fields, expected=expected)
        if len(self.refs) >= self.expected:
            self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        return version

    async def purge(self, ref: SecretRef) -> None:
        self._check()
        await self.store.purge(ref)

    async def purge_vault(self, vault_id: str) -> None:
        self._check()
        await self.store.purge_vault(vault_id)

    def _check(self) -> None:
        if self.sealed:
            raise StoreUnavailable("Vault is sealed")


class Sealed:
    """What `broker` is given, to get at the store that it opened."""

    def __init__(self) -> None:
        self.store: Any = None

    def __call__(self, store: SecretStore) -> Any:
        self.store = Sealable(store)
        return self.store


async def a_credential(proxy: Broker) -> tuple[str, str]:
    async with proxy.sdk() as sdk:
        vault = await sdk.beta.vaults.create(display_name="Alice")
        return vault.id, (await sdk.beta.vaults.credentials.create(vault.id, auth=BEARER)).id


async def gone(proxy: Broker, ref: SecretRef) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await proxy.store.read_own(ref)
            except SecretMissing:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("call", ["archive", "delete"])
@pytest.mark.parametrize("what", ["credential", "vault"])
async def test_what_cannot_be_purged_now_is_used_no_more_and_purged_later(tmp_path: Path, what: str, call: str) -> None:
    sealed = Sealed()
    async with broker(tmp_path / "home", around=sealed) as proxy, proxy.sdk() as sdk:
        vault_id, credential_id = await a_credential(proxy)
        session = await proxy.session(vault_id)
        sealed.store.sealed = True
        resource: Any = sdk.beta.vaults if what == "vault" else sdk.beta.vaults.credentials
        names = (vault_id,) if what == "vault" else (credential_id,)
        more = {} if what == "vault" else {"vault_id": vault_id}
        for _ in range(2):
            with pytest.raises(anthropic.InternalServerError, match=r"could not be removed.*Vault is sealed") as failed:
                await getattr(resource, call)(*names, **more)
            assert failed.value.status_code == 503
        assert await proxy.source.for_mcp(session, [vault_id], BEARER["mcp_server_url"]) is None
        sealed.store.sealed = False
        done = await getattr(resource, call)(*names, **more)
        assert done.id in (vault_id, credential_id)
        with pytest.raises(SecretMissing):
            await proxy.store.read_own(sealed.store.refs[0])


async def test_nobody_has_to_ask_again_and_a_restart_does_not_forget(tmp_path: Path) -> None:
    sealed = Sealed()
    async with broker(tmp_path / "home", around=sealed) as proxy:
        vault_id, credential_id = await a_credential(proxy)
        sealed.store.sealed = True
        with pytest.raises(StoreUnavailable):
            await proxy.part.credentials.archive(vault_id, credential_id)
        ref = sealed.store.refs[0]
    async with broker(tmp_path / "home") as proxy:
        await gone(proxy, ref)
        assert b"tok-planted" not in everything_below(proxy.home)


async def test_a_create_that_loses_leaves_no_secret(tmp_path: Path) -> None:
    sealed = Sealed()
    async with broker(tmp_path / "home", around=sealed) as proxy, proxy.sdk() as sdk:
        vault = await sdk.beta.vaults.create(display_name="Alice")
        sealed.store.hold, sealed.store.expected = asyncio.Event(), 3
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            twins = [
                tasks.create_task(_outcome(sdk.beta.vaults.credentials.create(vault.id, auth=BEARER))) for _ in range(3)
            ]
            await sealed.store.arrived.wait()
            sealed.store.hold.set()
        kinds = sorted(task.result() for task in twins)
        assert kinds == ["ConflictError", "ConflictError", "made"]
        missing = 0
        for ref in sealed.store.refs:
            try:
                await proxy.store.read_own(ref)
            except SecretMissing:
                missing += 1
        assert missing == 2


async def _outcome(call: Any) -> str:
    try:
        await call
    except anthropic.APIStatusError as error:
        return type(error).__name__
    return "made"


async def test_a_create_that_is_cut_off_leaves_no_secret(tmp_path: Path) -> None:
    sealed = Sealed()
    async with broker(tmp_path / "home", around=sealed) as proxy, proxy.sdk() as sdk:
        vault = await sdk.beta.vaults.create(display_name="Alice")
        asked = CredentialCreate.model_validate({"auth": BEARER})
        sealed.store.hold = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            making = tasks.create_task(proxy.part.credentials.create(vault.id, asked))
            await sealed.store.arrived.wait()
            making.cancel()
        with pytest.raises(SecretMissing):
            await proxy.store.read_own(sealed.store.refs[0])
        assert (await sdk.beta.vaults.credentials.list(vault.id)).data == []


async def test_a_create_that_is_killed_is_cleaned_up_after(tmp_path: Path) -> None:
    # The note that a secret is about to be written comes first: here it is all that is left of a create.
    sealed = Sealed()
    async with broker(tmp_path / "home", around=sealed) as proxy:
        vault_id, _ = await a_credential(proxy)
        lost = SecretRef(vault_id, "vcrd_lost")
        await proxy.store.write(lost, {"token": Secret("tok-planted")}, expected=0)
        await proxy.state.write(lambda db: rows.owe_purge(db, lost, proxy.clock() + timedelta(minutes=10)))
        assert await proxy.state.read(lambda db: rows.owed(db, proxy.clock(), limit=10)) == []
        proxy.clock.ahead = timedelta(minutes=11)
        assert await proxy.state.read(lambda db: rows.owed(db, proxy.clock(), limit=10)) == [lost]


async def test_while_the_store_is_sealed_nothing_is_created_or_changed(tmp_path: Path) -> None:
    sealed = Sealed()
    async with broker(tmp_path / "home", around=sealed) as proxy, proxy.sdk() as sdk:
        vault_id, credential_id = await a_credential(proxy)
        before = await sdk.beta.vaults.credentials.retrieve(credential_id, vault_id=vault_id)
        sealed.store.sealed = True
        other: Any = {**BEARER, "mcp_server_url": "https://other.example.com"}
        with pytest.raises(anthropic.InternalServerError, match="Vault is sealed"):
            await sdk.beta.vaults.credentials.create(vault_id, auth=other, extra_headers=HEADER)
        with pytest.raises(anthropic.InternalServerError, match="Vault is sealed"):
            await sdk.beta.vaults.credentials.update(
                credential_id, vault_id=vault_id, auth={"type": "static_bearer", "token": "t2"}
            )
        assert await sdk.beta.vaults.credentials.retrieve(credential_id, vault_id=vault_id) == before
        sealed.store.sealed = False
        made = await sdk.beta.vaults.credentials.create(vault_id, auth=other, extra_headers=HEADER)
        assert made.id != credential_id
