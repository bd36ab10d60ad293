"""Session tokens at Vault: what they are made with, how long they live, and what is refused."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from galley_vault_proxy.errors import AccessRefused, SessionClosed, StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import TokenAuth
from galley_vault_proxy.store import kv
from galley_vault_proxy.store.names import vault_name
from galley_vault_proxy.store.session_tokens import SessionToken
from galley_vault_proxy.store.vault_adapter import Request, text_of
from galley_vault_proxy.store.vault_client import VaultClient
from galley_vault_proxy.store.vault_fault import Refused

from tests.contract.secret_store_kit import fields, later, vault_store
from tests.integration.vault_bench import OTHER, REF, SESSION, VaultBench, eventually, kv_path, vault_bench
from tests.vault_server.tokens import Token

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[VaultBench]:
    async with vault_bench(tmp_path) as made:
        yield made


def _session_tokens(bench: VaultBench) -> list[Token]:
    tokens = bench.vault.run(lambda: list(bench.vault.root.tokens.by_id.values()))
    return [token for token in tokens if token.role]


async def test_a_token_is_made_at_the_first_use_with_the_vault_as_its_alias(bench: VaultBench) -> None:
    assert _session_tokens(bench) == []
    await bench.read()
    (seen,) = bench.new("auth/token/create")
    name = vault_name("vlt_one")
    assert seen.body == {"entity_alias": name, "meta": {"session": SESSION, "vault": name}, "ttl": "900s"}


async def test_a_session_has_one_token_for_each_vault(bench: VaultBench) -> None:
    await asyncio.gather(*(bench.read(ref, fresh=True) for ref in (REF, OTHER, REF, OTHER)))
    assert bench.own_tokens() == sorted([vault_name("vlt_one"), vault_name("vlt_two")])


async def test_vault_itself_refuses_a_sessions_token_the_path_of_another_vault(bench: VaultBench) -> None:
    await bench.read()
    (token,) = _session_tokens(bench)
    async with VaultClient.open(bench.settings) as client:
        mine = kv.read(bench.settings.mounts, REF)
        await client.send(Request("get", mine.path, mine.what, token=Secret(token.id)))
        theirs = kv.read(bench.settings.mounts, OTHER)
        with pytest.raises(Refused):
            await client.send(Request("get", theirs.path, theirs.what, token=Secret(token.id)))


async def test_the_proxys_own_token_cannot_read_a_secret(bench: VaultBench) -> None:
    assert isinstance(bench.settings.auth, TokenAuth)
    own = bench.settings.auth.token
    async with VaultClient.open(bench.settings) as client:
        request = kv.read(bench.settings.mounts, REF)
        with pytest.raises(Refused):
            await client.send(Request("get", request.path, request.what, token=own))


async def test_the_second_read_asks_nobody(bench: VaultBench) -> None:
    await bench.read()
    bench.mark()
    for _ in range(100):
        await bench.read()
    assert bench.new() == []


async def test_a_fresh_read_asks_vault_once(bench: VaultBench) -> None:
    await bench.read()
    bench.mark()
    await bench.read(fresh=True)
    assert [seen.path.startswith(kv_path(REF)) for seen in bench.new()] == [True]


async def test_readers_of_the_same_moment_share_one_request(bench: VaultBench) -> None:
    await asyncio.gather(*(bench.read() for _ in range(20)))
    assert len(bench.new("secret/data")) == 1
    assert len(bench.new("auth/token/create")) == 1


async def test_every_request_of_a_session_carries_its_name(bench: VaultBench) -> None:
    await bench.read()
    assert {seen.session for seen in bench.new()} == {SESSION}


async def test_a_token_that_died_behind_our_back_is_replaced_once(bench: VaultBench) -> None:
    await bench.read()
    (token,) = _session_tokens(bench)
    bench.vault.run(lambda: bench.vault.root.tokens.revoke(token))
    bench.mark()
    assert await bench.read(fresh=True) == "of vlt_one"
    assert [seen.path for seen in bench.new("auth/")] == [
        "auth/token/lookup-accessor",
        "auth/token/create/galley-session",
    ]


async def test_a_token_that_lives_and_is_refused_is_a_matter_of_policy(bench: VaultBench) -> None:
    await bench.read()
    bench.vault.run(lambda: bench.vault.root.policies.update({"galley-vault": ""}))
    bench.mark()
    with pytest.raises(AccessRefused):
        await bench.read(fresh=True)
    assert bench.new("auth/token/create") == []


async def test_a_vault_stopped_by_disabling_its_identity_is_refused(bench: VaultBench) -> None:
    await bench.read()

    def disable() -> None:
        for entity in bench.vault.root.tokens.entities.values():
            entity.disabled = True

    bench.vault.run(disable)
    with pytest.raises(AccessRefused):
        await bench.read(fresh=True)


async def test_another_identity_than_the_recorded_one_is_not_used(bench: VaultBench) -> None:
    await bench.read()
    await bench.store.close_session(SESSION)
    bench.vault.run(bench.vault.root.tokens.entities.clear)
    await bench.store.open_session(SESSION, (REF.vault_id,), later())
    bench.mark()
    with pytest.raises(StoreUnavailable, match="another identity"):
        await bench.read()
    assert _session_tokens(bench) == []
    assert bench.new("secret/data") == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"token_no_default_policy": False}, "other policies"),
        ({"allowed_policies": ["galley-proxy"]}, "other policies"),
    ],
)
async def test_a_token_with_more_rights_than_its_vaults_is_revoked(
    bench: VaultBench, change: dict[str, bool | list[str]], what: str
) -> None:
    bench.vault.run(lambda: bench.vault.root.tokens.roles["galley-session"].update(change))  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match=what):
        await bench.read()
    assert _session_tokens(bench) == []


async def test_a_token_never_outlives_its_session(bench: VaultBench) -> None:
    await bench.store.open_session("sesn_short", (REF.vault_id,), later(timedelta(seconds=100)))
    await bench.store.read("sesn_short", REF)
    (token,) = _session_tokens(bench)
    assert 90 <= token.ttl_s <= 100


def _age(bench: VaultBench, rest_s: float) -> SessionToken:
    """Bring the session's one token near its end, as the proxy counts."""
    (held,) = bench.store._tokens._tokens.values()
    held.ends = asyncio.get_running_loop().time() + rest_s
    return held


async def test_a_token_is_renewed_at_half_its_life_by_its_accessor(bench: VaultBench) -> None:
    await bench.read()
    await bench.store._tokens.renew_due()
    assert bench.new("renew-accessor") == []
    held = _age(bench, 400)
    await bench.store._tokens.renew_due()
    (seen,) = bench.new("renew-accessor")
    assert (seen.body, seen.session) == ({"accessor": held.accessor, "increment": 900}, SESSION)
    assert held.ends - asyncio.get_running_loop().time() > 850


async def test_a_renewal_never_reaches_past_the_sessions_end(bench: VaultBench) -> None:
    await bench.store.open_session(SESSION, (REF.vault_id,), later(timedelta(seconds=600)))
    await bench.read()
    _age(bench, 100)
    await bench.store._tokens.renew_due()
    (seen,) = bench.new("renew-accessor")
    assert isinstance(increment := seen.body["increment"], int)
    assert 590 <= increment <= 600
    bench.mark()
    _age(bench, 700)
    await bench.store._tokens.renew_due()
    assert bench.new("renew-accessor") == []


async def test_a_token_at_its_ceiling_is_replaced_at_the_next_use(bench: VaultBench) -> None:
    await bench.read()
    _age(bench, 100)
    bench.vault.advance(25 * 3600)
    await bench.store._tokens.renew_due()
    bench.vault.run(lambda: _new_own_token(bench))
    assert await bench.read(fresh=True) == "of vlt_one"
    assert len(bench.new("auth/token/create/")) == 2


def _new_own_token(bench: VaultBench) -> None:
    """The proxy's own token, which has died of old age too, lives again."""
    assert isinstance(bench.settings.auth, TokenAuth)
    tokens = bench.vault.root.tokens
    made = tokens.create({"policies": ["galley-proxy"], "no_default_policy": True, "ttl": "1h"}, path="auth/token/x")
    token = tokens.living(text_of(made.auth or {}, "client_token"))
    assert token is not None
    tokens.by_id[bench.settings.auth.token.reveal()] = token


async def test_a_renewal_that_fails_leaves_the_token_as_it_is(bench: VaultBench) -> None:
    await bench.read()
    held = _age(bench, 100)
    bench.vault.run(bench.vault.root.tokens.roles.clear)
    await bench.store._tokens.renew_due()
    assert 90 < held.ends - asyncio.get_running_loop().time() <= 100
    assert await bench.read(fresh=True) == "of vlt_one"


async def test_the_end_of_a_session_revokes_its_tokens(bench: VaultBench) -> None:
    await bench.read(REF)
    await bench.read(OTHER)
    await bench.store.close_session(SESSION)
    assert bench.own_tokens() == []
    with pytest.raises(SessionClosed):
        await bench.read()


async def test_the_end_of_one_session_leaves_another_alone(bench: VaultBench) -> None:
    await bench.store.open_session("sesn_two", (REF.vault_id,), later())
    await bench.store.read("sesn_two", REF)
    await bench.read()
    await bench.store.close_session(SESSION)
    assert (await bench.store.read("sesn_two", REF, fresh=True)).version == 1


async def test_tokens_of_a_session_are_revoked_by_a_process_that_never_had_them(bench: VaultBench) -> None:
    await bench.read()
    async with vault_store(bench.settings, bench.home) as other:
        await other.close_session(SESSION)
        assert bench.own_tokens() == []


async def test_the_proxy_ends_its_tokens_when_it_stops(bench: VaultBench) -> None:
    async with vault_store(bench.settings, bench.home) as other:
        await other.open_session("sesn_other", (REF.vault_id,), later())
        await other.read("sesn_other", REF)
        assert len(bench.own_tokens()) == 1
    assert bench.own_tokens() == []


async def test_a_purged_vault_has_no_token_left(bench: VaultBench) -> None:
    await bench.read(REF)
    await bench.read(OTHER)
    await bench.store.purge_vault("vlt_one")
    assert bench.own_tokens() == [vault_name("vlt_two")]


async def test_another_process_on_the_same_state_tells_of_its_writes(bench: VaultBench) -> None:
    await bench.read()
    async with vault_store(bench.settings, bench.home) as other:
        await other.write(REF, fields(token="newer"), expected=1)
        # Less than a second, and not the 30 s of the cache.
        await eventually(lambda: _reads(bench, "newer"))


async def test_a_secret_rotated_in_vault_is_seen_when_the_cache_ends(tmp_path: Path) -> None:
    async with vault_bench(tmp_path, cache_ttl_s=0.05) as bench:
        await bench.read()
        bench.vault.run(lambda: _rotate(bench, vault_name("vlt_one")))
        await eventually(lambda: _reads(bench, "rotated"))


async def _reads(bench: VaultBench, value: str) -> bool:
    return await bench.read() == value


def _rotate(bench: VaultBench, name: str) -> None:
    secrets = bench.vault.root.kv()._secrets
    (path,) = [path for path in secrets if name in path]
    secrets[path].last += 1
    secrets[path].versions[secrets[path].last] = {"token": "rotated"}


async def test_no_token_and_no_accessor_is_logged_or_told(bench: VaultBench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await bench.read()
    (token,) = _session_tokens(bench)
    bench.vault.trouble = "sealed"
    with pytest.raises(StoreUnavailable) as caught:
        await bench.store.close_session(SESSION)
    told = caplog.text + str(caught.value)
    assert token.id not in told
    assert token.accessor not in told
    assert "of vlt_one" not in told


async def test_no_token_is_in_the_state(bench: VaultBench) -> None:
    await bench.read()
    (token,) = _session_tokens(bench)
    kept = await asyncio.to_thread(_files, bench.home)
    assert token.accessor.encode() in kept
    assert token.id.encode() not in kept
    assert b"of vlt_one" not in kept


async def test_nothing_blocks_the_event_loop(bench: VaultBench) -> None:
    with blockbuster_ctx("galley_vault_proxy"):
        await bench.read()
        await bench.store.write(REF, fields(token="t2"), expected=1)
        assert await bench.read() == "t2"
        await bench.store.unseal("vlt_one", await bench.store.seal("vlt_one", b"x"))
        await bench.store.purge(REF)
        await bench.store.ready()
        await bench.store.close_session(SESSION)


def _files(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.iterdir() if path.is_file())
