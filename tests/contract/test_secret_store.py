"""What every secret store promises, over each of them."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from galley_vault_proxy.errors import (
    AccessRefused,
    InvalidRequest,
    SecretMissing,
    SessionClosed,
    VersionConflict,
)
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.port import SecretRef

from tests.contract.secret_store_kit import Bench, VaultPlace, embedded, fields, later, over_vault, place_of, revealed
from tests.vault_server.server import TestVault, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def vault_server() -> Iterator[TestVault]:
    with running() as server:
        yield server.vault


@pytest.fixture(params=["embedded", "test_vault", "real_vault"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "embedded":
        async with embedded(tmp_path) as made:
            yield made
        return
    if request.param == "test_vault":
        vault: TestVault = request.getfixturevalue("vault_server")
        async with over_vault(place_of(vault), tmp_path) as made:
            yield made
        assert vault.unsupported == []
        assert {seen.line for seen in vault.seen if not seen.session} == set()
        return
    address, token = os.environ.get("VAULT_ADDR"), os.environ.get("VAULT_TOKEN")
    if not address or not token:
        pytest.skip("VAULT_ADDR and VAULT_TOKEN name no Vault")
    async with over_vault(VaultPlace(address, Secret(token)), tmp_path) as made:
        yield made


async def test_what_was_written_is_read_by_a_session_of_the_vault(bench: Bench) -> None:
    ref = bench.ref()
    session = await bench.open()
    assert await bench.store.write(ref, fields(token="t-1", refresh="r-1"), expected=None) == 1
    material = await bench.store.read(session, ref)
    assert (revealed(material), material.version) == ({"token": "t-1", "refresh": "r-1"}, 1)


async def test_a_secret_may_hold_any_text(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    odd = 'quote" backslash\\ newline\n null\0 snow☃ 𝄞 ' + "x" * 60_000
    await bench.store.write(ref, fields(token=odd), expected=0)
    assert revealed(await bench.store.read(session, ref)) == {"token": odd}


async def test_a_rotation_is_seen_by_the_next_read(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="old"), expected=0)
    await bench.store.read(session, ref)
    assert await bench.store.write(ref, fields(token="new"), expected=1) == 2
    assert revealed(await bench.store.read(session, ref)) == {"token": "new"}


async def test_a_write_replaces_every_field(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="t", refresh="r"), expected=0)
    await bench.store.write(ref, fields(token="t2"), expected=None)
    assert revealed(await bench.store.read(session, ref)) == {"token": "t2"}


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_a_stale_compare_and_set_writes_nothing(bench: Bench, expected: int) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="a"), expected=0)
    await bench.store.write(ref, fields(token="b"), expected=1)
    with pytest.raises(VersionConflict):
        await bench.store.write(ref, fields(token="c"), expected=expected)
    assert revealed(await bench.store.read(session, ref)) == {"token": "b"}


async def test_of_writers_at_once_exactly_one_wins(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="start"), expected=0)

    async def attempt(name: str) -> bool:
        try:
            await bench.store.write(ref, fields(token=name), expected=1)
        except VersionConflict:
            return False
        return True

    won = await asyncio.gather(*(attempt(f"w{number}") for number in range(8)))
    assert sum(won) == 1
    assert revealed(await bench.store.read(session, ref)) == {"token": f"w{won.index(True)}"}


async def test_a_secret_never_written_is_missing(bench: Bench) -> None:
    session = await bench.open()
    with pytest.raises(SecretMissing):
        await bench.store.read(session, bench.ref())
    with pytest.raises(SecretMissing):
        await bench.store.read_own(bench.ref())


async def test_a_purged_secret_is_missing_for_everybody(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="t"), expected=0)
    await bench.store.read(session, ref)
    await bench.store.purge(ref)
    await bench.store.purge(ref)
    with pytest.raises(SecretMissing):
        await bench.store.read(session, ref)
    with pytest.raises(SecretMissing):
        await bench.store.read_own(ref)


async def test_a_purged_secret_can_be_written_as_new(bench: Bench) -> None:
    ref = bench.ref()
    await bench.store.write(ref, fields(token="t"), expected=0)
    await bench.store.purge(ref)
    assert await bench.store.write(ref, fields(token="again"), expected=0) == 1


async def test_purging_a_vault_takes_its_secrets_and_no_other(bench: Bench) -> None:
    session = await bench.open(bench.vault, bench.other_vault)
    mine, also_mine, other = bench.ref(), bench.ref(), bench.ref(bench.other_vault)
    for ref in (mine, also_mine, other):
        await bench.store.write(ref, fields(token=ref.credential_id), expected=0)
    await bench.store.purge_vault(bench.vault)
    await bench.store.purge_vault(bench.vault)
    for ref in (mine, also_mine):
        with pytest.raises(SecretMissing):
            await bench.store.read(session, ref)
    assert revealed(await bench.store.read(session, other)) == {"token": other.credential_id}


async def test_ids_that_differ_in_case_only_are_different_vaults(bench: Bench) -> None:
    lower, upper = bench.vault.lower(), bench.vault.upper()
    credential = new_id("vcrd")
    session = await bench.open(lower, upper)
    await bench.store.write(SecretRef(lower, credential), fields(token="lower"), expected=0)
    await bench.store.write(SecretRef(upper, credential), fields(token="upper"), expected=0)
    assert revealed(await bench.store.read(session, SecretRef(lower, credential))) == {"token": "lower"}
    assert revealed(await bench.store.read(session, SecretRef(upper, credential))) == {"token": "upper"}


@pytest.mark.parametrize("bad", ["", "a" * 41, "a\nb", "vlt_ü", "a\0b"])
async def test_an_id_that_no_path_can_hold_is_refused(bench: Bench, bad: str) -> None:
    session = await bench.open()
    for ref in (SecretRef(bad, "vcrd_1"), SecretRef(bench.vault, bad)):
        with pytest.raises(InvalidRequest):
            await bench.store.write(ref, fields(token="t"), expected=None)
        with pytest.raises(InvalidRequest):
            await bench.store.read(session, ref)
        with pytest.raises(InvalidRequest):
            await bench.store.purge(ref)


@pytest.mark.parametrize("odd", ["..", "../x", "*", "+", "a/b", "%2e%2e", "a?b#c"])
async def test_an_id_that_means_something_in_a_path_means_nothing_here(bench: Bench, odd: str) -> None:
    session = await bench.open(odd, bench.vault)
    await bench.store.write(SecretRef(odd, odd), fields(token="odd"), expected=None)
    assert revealed(await bench.store.read(session, SecretRef(odd, odd))) == {"token": "odd"}
    with pytest.raises(SecretMissing):
        await bench.store.read(session, SecretRef(bench.vault, odd))
    await bench.store.purge_vault(odd)


async def test_a_session_reads_only_its_own_vaults(bench: Bench) -> None:
    ref = bench.ref(bench.other_vault)
    session = await bench.open(bench.vault)
    await bench.store.write(ref, fields(token="t"), expected=0)
    with pytest.raises(AccessRefused):
        await bench.store.read(session, ref)


async def test_a_session_never_opened_reads_nothing(bench: Bench) -> None:
    with pytest.raises(SessionClosed):
        await bench.store.read("sesn_unknown", bench.ref())


async def test_a_closed_session_reads_nothing_not_even_what_it_has_read(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="t"), expected=0)
    await bench.store.read(session, ref)
    await bench.store.close_session(session)
    await bench.store.close_session(session)
    with pytest.raises(SessionClosed):
        await bench.store.read(session, ref)
    with pytest.raises(SessionClosed):
        await bench.store.issue(session, bench.vault, "database", "reader", {})


async def test_a_session_past_its_end_reads_nothing(bench: Bench) -> None:
    ref = bench.ref()
    await bench.store.write(ref, fields(token="t"), expected=0)
    await bench.store.open_session(bench.session, (bench.vault,), later(-timedelta(seconds=1)))
    with pytest.raises(SessionClosed):
        await bench.store.read(bench.session, ref)


async def test_a_session_can_be_opened_again_with_other_vaults(bench: Bench) -> None:
    ref, other = bench.ref(), bench.ref(bench.other_vault)
    session = await bench.open(bench.vault)
    for each in (ref, other):
        await bench.store.write(each, fields(token="t"), expected=0)
    await bench.store.read(session, ref)
    await bench.store.close_session(session)
    await bench.open(bench.other_vault)
    assert (await bench.store.read(session, other)).version == 1
    with pytest.raises(AccessRefused):
        await bench.store.read(session, ref)


async def test_a_vault_taken_from_a_session_is_refused_though_it_was_read(bench: Bench) -> None:
    ref = bench.ref()
    session = await bench.open(bench.vault, bench.other_vault)
    await bench.store.write(ref, fields(token="t"), expected=0)
    await bench.store.read(session, ref)
    await bench.open(bench.other_vault)
    with pytest.raises(AccessRefused):
        await bench.store.read(session, ref)


async def test_the_proxy_itself_reads_what_belongs_to_no_session(bench: Bench) -> None:
    ref = bench.ref()
    await bench.store.write(ref, fields(token="t"), expected=0)
    assert revealed(await bench.store.read_own(ref)) == {"token": "t"}
    await bench.store.write(ref, fields(token="t2"), expected=1)
    assert revealed(await bench.store.read_own(ref)) == {"token": "t2"}


async def test_secrets_survive_a_restart(bench: Bench) -> None:
    ref = bench.ref()
    await bench.store.write(ref, fields(token="t"), expected=0)
    async with bench.reopen() as again:
        await again.open_session(bench.session, (bench.vault,), later())
        assert revealed(await again.read(bench.session, ref)) == {"token": "t"}


async def test_another_process_sees_a_rotation_when_it_asks_afresh(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="old"), expected=0)
    await bench.store.read(session, ref)
    async with bench.reopen() as other:
        await other.write(ref, fields(token="new"), expected=1)
    assert revealed(await bench.store.read(session, ref, fresh=True)) == {"token": "new"}


async def test_what_was_sealed_for_a_vault_is_unsealed_for_it_only(bench: Bench) -> None:
    sealed = await bench.store.seal(bench.vault, b"\x00verifier\xff")
    assert await bench.store.unseal(bench.vault, sealed) == b"\x00verifier\xff"
    assert "verifier" not in sealed
    with pytest.raises(InvalidRequest):
        await bench.store.unseal(bench.other_vault, sealed)


@pytest.mark.parametrize("bad", ["", "nothing", "galley:v1:", "vault:v1:AAAA", "vault:v1:", "galley:v1:x:AAAA"])
async def test_what_was_never_sealed_is_refused(bench: Bench, bad: str) -> None:
    with pytest.raises(InvalidRequest):
        await bench.store.unseal(bench.vault, bad)


async def test_sealed_values_survive_a_restart(bench: Bench) -> None:
    sealed = await bench.store.seal(bench.vault, b"state")
    async with bench.reopen() as again:
        assert await again.unseal(bench.vault, sealed) == b"state"


async def test_a_hand_over_is_taken_once(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="t"), expected=0)
    token = await bench.store.wrap(session, ref, ttl_s=60)
    material = await bench.store.unwrap(ref, token)
    assert (revealed(material), material.version) == ({"token": "t"}, 1)
    with pytest.raises(AccessRefused):
        await bench.store.unwrap(ref, token)


async def test_a_hand_over_made_for_another_credential_is_refused_and_not_spent(bench: Bench) -> None:
    ref, other, session = bench.ref(), bench.ref(), await bench.open()
    for each in (ref, other):
        await bench.store.write(each, fields(token=each.credential_id), expected=0)
    token = await bench.store.wrap(session, ref, ttl_s=60)
    with pytest.raises(AccessRefused):
        await bench.store.unwrap(other, token)
    assert revealed(await bench.store.unwrap(ref, token)) == {"token": ref.credential_id}


@pytest.mark.parametrize("made_up", ["wrap_AAAA", "s.nothing", "no such token", ""])
async def test_a_hand_over_that_was_never_made_is_refused(bench: Bench, made_up: str) -> None:
    with pytest.raises(AccessRefused):
        await bench.store.unwrap(bench.ref(), Secret(made_up))


async def test_a_closed_session_hands_nothing_over(bench: Bench) -> None:
    ref, session = bench.ref(), await bench.open()
    await bench.store.write(ref, fields(token="t"), expected=0)
    await bench.store.close_session(session)
    with pytest.raises(SessionClosed):
        await bench.store.wrap(session, ref, ttl_s=60)


async def test_a_session_whose_name_does_not_fit_a_header_is_refused(bench: Bench) -> None:
    for bad in ("", "a b", "a\r\nX-Vault-Token: x", "ü", "a" * 129):
        with pytest.raises(InvalidRequest):
            await bench.store.open_session(bad, (bench.vault,), later())


async def test_a_store_that_serves_is_ready(bench: Bench) -> None:
    await bench.store.ready()


async def test_a_store_without_engines_says_what_it_needs(bench: Bench) -> None:
    if bench.dynamic:
        return
    session = await bench.open()
    with pytest.raises(InvalidRequest, match="VAULT_ADDR"):
        await bench.store.issue(session, bench.vault, "database", "reader", {})
