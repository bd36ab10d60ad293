"""Leases that come too late, and the holes of Vault's that make the gate necessary."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from galley_vault_proxy.errors import SessionClosed, StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.dynamic import issue, revoke
from galley_vault_proxy.store.names import vault_name
from galley_vault_proxy.store.port import Lease
from galley_vault_proxy.store.vault_adapter import Request, text_of
from galley_vault_proxy.store.vault_client import VaultClient

from tests.contract.dynamic_kit import prepare
from tests.contract.secret_store_kit import later, place_of, vault_store
from tests.integration.vault_bench import REF, SESSION, VaultBench, eventually, vault_bench
from tests.vault_server.engines import Database

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[VaultBench]:
    async with vault_bench(tmp_path, timeout_s=1.0, drain_s=0.2) as made:
        async with place_of(made.vault).acting() as operator:
            await prepare(operator, vault_name(REF.vault_id), "postgresql://galley@127.0.0.1:1/none")
        made.mark()
        yield made


def _database(bench: VaultBench) -> Database:
    return bench.vault.root.database()


def _hold(bench: VaultBench) -> None:
    bench.vault.run(lambda: setattr(_database(bench), "hold", asyncio.Event()))


def _let_go(bench: VaultBench) -> None:
    hold = _database(bench).hold
    assert hold is not None
    bench.vault.run(hold.set)


async def _issue(bench: VaultBench) -> Lease:
    return await bench.store.issue(SESSION, REF.vault_id, "database", "reader", {})


async def _making(bench: VaultBench) -> bool:
    return _database(bench).making > 0


async def _nobody(bench: VaultBench) -> bool:
    return not _database(bench).users


async def test_vaults_own_hole_a_user_made_while_its_token_is_revoked_stays(bench: VaultBench) -> None:
    """Without the gate. Seen on a real server: answered 200 after the revoke's 204, and never dropped."""
    tokens = bench.vault.root.tokens
    role = bench.vault.run(lambda: tokens.create_by_role("galley-session", {"entity_alias": vault_name(REF.vault_id)}))
    assert role.auth is not None
    token = bench.vault.run(lambda: tokens.living(text_of(role.auth or {}, "client_token")))
    assert token is not None
    _hold(bench)
    path = issue(bench.settings.mounts, "s", vault_name(REF.vault_id), "database", "reader", {}).path
    async with VaultClient.open(bench.settings) as client, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(client.send(Request("get", path, "issue", token=Secret(token.id))))
        await eventually(lambda: _making(bench))
        bench.vault.run(lambda: tokens.revoke(token))
        _let_go(bench)
    lease_id = text_of(answer.result().body, "lease_id")
    assert len(_database(bench).users) == 1
    bench.vault.run(lambda: tokens.revoke_lease(lease_id))
    assert len(_database(bench).users) == 0


async def test_the_end_of_a_session_waits_for_what_is_on_its_way(bench: VaultBench) -> None:
    _hold(bench)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_refused(bench))
        await eventually(lambda: _making(bench))
        closing = tasks.create_task(bench.store.close_session(SESSION))
        _let_go(bench)
    assert closing.exception() is None
    assert isinstance(waiting.result(), SessionClosed)
    await eventually(lambda: _nobody(bench))


async def test_what_arrives_after_the_end_is_revoked_by_its_id(bench: VaultBench) -> None:
    _hold(bench)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_refused(bench))
        await eventually(lambda: _making(bench))
        await bench.store.close_session(SESSION)
        assert bench.own_tokens() == []
        _let_go(bench)
    assert isinstance(waiting.result(), SessionClosed | StoreUnavailable)
    await eventually(lambda: _nobody(bench))
    assert [seen.body.get("sync") for seen in bench.new("sys/leases/revoke")] == [True]


async def test_a_slow_database_keeps_the_caller_no_longer_than_the_time_out(bench: VaultBench) -> None:
    _hold(bench)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="what still arrives is revoked"):
        await _issue(bench)
    assert time.monotonic() - began < 2
    _let_go(bench)
    await eventually(lambda: _released(bench))


async def _released(bench: VaultBench) -> bool:
    return not _database(bench).users and bool(bench.new("sys/leases/revoke"))


async def test_what_another_process_ended_while_it_was_on_its_way_is_revoked(bench: VaultBench) -> None:
    await bench.read()
    _hold(bench)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_refused(bench))
        await eventually(lambda: _making(bench))
        async with vault_store(bench.settings, bench.home) as other:
            await other.close_session(SESSION)
        _let_go(bench)
    assert isinstance(waiting.result(), SessionClosed)
    await eventually(lambda: _nobody(bench))


async def test_a_late_lease_that_could_not_be_revoked_is_revoked_when_vault_is_back(bench: VaultBench) -> None:
    _hold(bench)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_refused(bench))
        await eventually(lambda: _making(bench))
        await bench.store.close_session(SESSION)
        bench.vault.trouble = "sealed"
        _let_go(bench)
    assert isinstance(waiting.result(), StoreUnavailable | SessionClosed)
    bench.vault.trouble = None
    await eventually(lambda: _nobody(bench))


async def test_revoking_a_lease_needs_no_session(bench: VaultBench) -> None:
    lease = await _issue(bench)
    async with place_of(bench.vault).acting() as operator:
        await operator.write("sys/leases/revoke", dict(revoke(lease.id).body or {}), method="put")
    assert await _nobody(bench)


async def test_an_expired_session_token_takes_its_users_along(bench: VaultBench) -> None:
    await _issue(bench)
    bench.vault.advance(16 * 60)
    await eventually(lambda: _nobody(bench))
    assert await bench.read(fresh=True) == "of vlt_one"


async def test_a_session_opened_again_issues_again(bench: VaultBench) -> None:
    await _issue(bench)
    await bench.store.close_session(SESSION)
    await bench.store.open_session(SESSION, (REF.vault_id,), later())
    assert (await _issue(bench)).id


async def _refused(bench: VaultBench) -> Exception | None:
    try:
        await _issue(bench)
    except (SessionClosed, StoreUnavailable) as error:
        return error
    return None
