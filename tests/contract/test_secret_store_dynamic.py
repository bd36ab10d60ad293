"""Dynamic credentials end with their session, whatever is on its way at that moment."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from galley_vault_proxy.errors import InvalidRequest, ProxyError, SecretMissing, SessionClosed, StoreUnavailable
from galley_vault_proxy.store.port import Lease

from tests.contract.dynamic_kit import DynamicBench, over_real_vault, over_test_vault
from tests.vault_server.server import TestVault, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def vault_server() -> Iterator[TestVault]:
    with running() as server:
        yield server.vault
        assert server.vault.unsupported == []


@pytest.fixture(params=["test_vault", "real_vault"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DynamicBench]:
    if request.param == "test_vault":
        async with over_test_vault(request.getfixturevalue("vault_server"), tmp_path) as made:
            yield made
        return
    async with over_real_vault(tmp_path) as made:
        yield made


async def test_a_database_user_lives_as_long_as_its_session(bench: DynamicBench) -> None:
    session = await bench.open("sesn_db")
    lease = await bench.store.issue(session, bench.vault, "database", "reader", {})
    assert set(lease.fields) == {"username", "password"}
    await bench.until_users(lambda users: lease.fields["username"].reveal() in users)
    await bench.store.close_session(session)
    await bench.no_users_left()


async def test_users_issued_while_sessions_end_are_gone_afterwards(bench: DynamicBench) -> None:
    issued = 0

    async def issue(session: str) -> None:
        nonlocal issued
        try:
            await bench.store.issue(session, bench.vault, "database", "reader", {})
            issued += 1
        except SessionClosed:
            pass

    async def live(number: int) -> None:
        session = await bench.open(f"sesn_race_{number}")
        # One before, so that the token is there; the others race the end.
        await bench.store.issue(session, bench.vault, "database", "reader", {})
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(issue(session))
            await asyncio.sleep(0.004 * (number % 10))
            await bench.store.close_session(session)

    for batch in range(3):
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(live(4 * batch + number))
    await bench.no_users_left()


async def test_a_user_that_nobody_waits_for_any_more_is_dropped(bench: DynamicBench) -> None:
    session = await bench.open("sesn_left")
    first = await bench.store.issue(session, bench.vault, "database", "reader", {})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bench.store.issue(session, bench.vault, "database", "reader", {})
    await bench.until_users(lambda users: users == {first.fields["username"].reveal()})
    await bench.store.close_session(session)
    await bench.no_users_left()


async def test_a_certificate_is_leased(bench: DynamicBench) -> None:
    session = await bench.open("sesn_pki")
    lease = await bench.store.issue(session, bench.vault, "pki", "web", {"common_name": "a.example.com"})
    assert {"certificate", "private_key", "serial_number"} <= set(lease.fields)
    await bench.store.close_session(session)


async def test_a_certificate_that_no_end_would_revoke_is_not_given_out(bench: DynamicBench) -> None:
    session = await bench.open("sesn_unleased")
    with pytest.raises(StoreUnavailable, match="generate_lease"):
        await bench.store.issue(session, bench.vault, "pki", "unleased", {"common_name": "a.example.com"})


async def test_any_leasing_engine_can_be_named(bench: DynamicBench) -> None:
    session = await bench.open("sesn_generic")
    lease = await bench.store.issue(session, bench.vault, "generic", "database/reader", {})
    assert lease.id.startswith("database/creds/")
    await bench.store.close_session(session)
    await bench.no_users_left()


async def test_a_role_that_is_not_there_is_missing(bench: DynamicBench) -> None:
    session = await bench.open("sesn_role")
    for engine, role in (("database", "nobody"), ("pki", "nobody")):
        with pytest.raises(SecretMissing):
            await bench.store.issue(session, bench.vault, engine, role, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["", "../reader", "a-b", "Reader", "a/b/../c/reader", "*", "no_mount"])
async def test_a_role_that_could_lead_elsewhere_is_refused(bench: DynamicBench, role: str) -> None:
    session = await bench.open("sesn_odd")
    with pytest.raises((InvalidRequest, SecretMissing)):
        await bench.store.issue(session, bench.vault, "database", role, {})
    with pytest.raises(ProxyError):
        await bench.store.issue(session, bench.vault, "generic", role, {})


async def test_leases_tell_when_they_end(bench: DynamicBench) -> None:
    session = await bench.open("sesn_ends")

    async def issue() -> Lease:
        return await bench.store.issue(session, bench.vault, "database", "reader", {})

    first, second = await asyncio.gather(issue(), issue())
    assert first.id != second.id
    assert 0 < (second.expires_at - first.expires_at).total_seconds() + 60 < 120
    await bench.store.close_session(session)
    await bench.no_users_left()
