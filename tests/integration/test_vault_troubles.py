"""Vault in trouble: bounded tries, a clear reason, nothing given out, and recovery without a restart."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from galley_vault_proxy.errors import SessionClosed, StoreUnavailable
from galley_vault_proxy.store.names import vault_name

from tests.contract.secret_store_kit import fields, later, vault_store
from tests.integration.vault_bench import REF, SESSION, VaultBench, eventually, vault_bench
from tests.vault_server.server import Trouble

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[VaultBench]:
    async with vault_bench(tmp_path, timeout_s=1.0) as made:
        await made.read()
        made.mark()
        yield made


REASONS: list[tuple[Trouble, str]] = [
    ("sealed", "sealed"),
    ("uninitialised", "sealed"),
    ("audit_full", "audit log full"),
    ("no_leader", "no active node"),
    ("redirect", "redirects"),
    ("quota", "rate limit"),
]


@pytest.mark.parametrize(("trouble", "reason"), REASONS)
async def test_a_troubled_vault_is_named_and_asked_a_few_times_only(
    bench: VaultBench, trouble: Trouble, reason: str
) -> None:
    bench.vault.trouble = trouble
    with pytest.raises(StoreUnavailable, match=reason):
        await bench.read(fresh=True)
    assert 1 <= len(bench.new()) <= 5


@pytest.mark.parametrize(("trouble", "reason"), REASONS)
async def test_the_end_of_a_trouble_needs_no_restart(bench: VaultBench, trouble: Trouble, reason: str) -> None:
    bench.vault.trouble = trouble
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=reason):
            await bench.read(fresh=True)
    bench.vault.trouble = None
    await eventually(lambda: _read(bench))


@pytest.mark.parametrize("trouble", ["sealed", "audit_full", "standby", "no_leader", "uninitialised"])
async def test_a_troubled_vault_is_not_ready(bench: VaultBench, trouble: Trouble) -> None:
    await bench.store.ready()
    bench.vault.trouble = trouble
    with pytest.raises(StoreUnavailable):
        await bench.store.ready()
    bench.vault.trouble = None
    await bench.store.ready()


async def test_what_was_just_read_is_served_while_vault_is_sealed(bench: VaultBench) -> None:
    bench.vault.trouble = "sealed"
    assert await bench.read() == "of vlt_one"


async def test_a_killed_vault_is_out_of_reach_and_comes_back(bench: VaultBench) -> None:
    await asyncio.to_thread(bench.server.kill)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await bench.read(fresh=True)
    with pytest.raises(StoreUnavailable):
        await bench.store.write(REF, fields(token="never"), expected=1)
    with pytest.raises(StoreUnavailable):
        await bench.store.ready()
    await asyncio.to_thread(bench.server.start)
    await eventually(lambda: _read(bench))


async def test_a_slow_vault_keeps_nobody_longer_than_the_time_out(bench: VaultBench) -> None:
    bench.vault.delay_s = 30
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="slow"):
        await bench.read(fresh=True)
    assert time.monotonic() - began < 2.5
    bench.vault.delay_s = 0
    await eventually(lambda: _read(bench))


async def test_a_vault_that_fails_is_left_alone_for_a_while(bench: VaultBench) -> None:
    bench.vault.trouble = "audit_full"
    for _ in range(8):
        with pytest.raises(StoreUnavailable):
            await bench.read(fresh=True)
    bench.mark()
    for _ in range(20):
        with pytest.raises(StoreUnavailable, match="left alone"):
            await bench.read(fresh=True)
    assert len(bench.new()) <= 1


async def test_a_passing_fault_is_not_seen(bench: VaultBench) -> None:
    bench.vault.statuses = [503, 500]
    assert await bench.read(fresh=True) == "of vlt_one"


async def test_a_read_cut_off_is_asked_again(bench: VaultBench) -> None:
    bench.vault.deaf = 1
    assert await bench.read(fresh=True) == "of vlt_one"
    assert len(bench.new("secret/data")) == 2


async def test_a_write_whose_answer_is_lost_is_not_sent_twice(bench: VaultBench) -> None:
    bench.vault.deaf = 1
    with pytest.raises(StoreUnavailable):
        await bench.store.write(REF, fields(token="may be"), expected=1)
    assert len(bench.new("secret/data")) == 1
    # It was written: the cache must not say otherwise.
    assert await bench.read() == "may be"


async def test_a_mint_whose_answer_is_lost_is_not_sent_twice(bench: VaultBench) -> None:
    await bench.store.open_session("sesn_new", (REF.vault_id,), later())
    bench.vault.deaf = 1
    with pytest.raises(StoreUnavailable):
        await bench.store.read("sesn_new", REF)
    assert len(bench.new("auth/token/create")) == 1


async def test_a_session_ends_though_vault_is_sealed_and_its_tokens_when_it_is_not(bench: VaultBench) -> None:
    bench.vault.trouble = "sealed"
    with pytest.raises(StoreUnavailable):
        await bench.store.close_session(SESSION)
    with pytest.raises(SessionClosed):
        await bench.read()
    assert bench.own_tokens() == [vault_name("vlt_one")]
    bench.vault.trouble = None
    await eventually(lambda: _closed(bench))
    assert bench.own_tokens() == []


async def test_what_could_not_be_revoked_is_revoked_after_a_restart(tmp_path: Path) -> None:
    async with vault_bench(tmp_path, timeout_s=0.5) as bench:
        async with vault_store(bench.settings, tmp_path) as first:
            await first.open_session("sesn_first", (REF.vault_id,), later())
            await first.read("sesn_first", REF)
            bench.vault.trouble = "sealed"
            with pytest.raises(StoreUnavailable):
                await first.close_session("sesn_first")
        bench.vault.trouble = None
        async with vault_store(bench.settings, tmp_path) as second:
            await second.close_session("sesn_first")
        assert bench.own_tokens() == []


async def _read(bench: VaultBench) -> bool:
    return await bench.read(fresh=True) == "of vlt_one"


async def _closed(bench: VaultBench) -> bool:
    await bench.store.close_session(SESSION)
    return True
