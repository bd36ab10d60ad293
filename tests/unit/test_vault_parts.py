"""The parts of the Vault store that decide: cache, breaker, gate, errands, threads, what Vault is to hold."""

import asyncio
import threading
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta

import pytest
from galley_vault_proxy.bootstrap import same_setting
from galley_vault_proxy.errors import AccessRefused, InvalidRequest, SessionClosed, StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store import vault_setup
from galley_vault_proxy.store.breaker import Breaker
from galley_vault_proxy.store.cache import Cache
from galley_vault_proxy.store.errands import Errands
from galley_vault_proxy.store.gate import Gate
from galley_vault_proxy.store.port import Material, SecretRef
from galley_vault_proxy.store.session_tokens import mint_fault
from galley_vault_proxy.store.vault_setup import Wanted
from galley_vault_proxy.threads import Threads
from pydantic import JsonValue

REF = SecretRef("vlt_1", "vcrd_1")
MATERIAL = Material({"token": Secret("t")}, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_was_read_is_kept_for_its_time() -> None:
    cache = Cache(30)
    cache.put(cache.ticket(), "s", REF, MATERIAL, now=100)
    assert cache.get("s", REF, now=129) is MATERIAL
    assert cache.get("s", REF, now=130) is None


def test_what_one_session_read_is_not_given_to_another() -> None:
    cache = Cache(30)
    cache.put(cache.ticket(), "s", REF, MATERIAL, now=0)
    assert cache.get("other", REF, now=1) is None


def test_a_read_that_began_before_a_write_is_not_kept() -> None:
    cache = Cache(30)
    ticket = cache.ticket()
    cache.forget(REF)
    cache.put(ticket, "s", REF, MATERIAL, now=0)
    assert cache.get("s", REF, now=1) is None
    cache.put(cache.ticket(), "s", REF, MATERIAL, now=0)
    assert cache.get("s", REF, now=1) is MATERIAL


def test_a_read_that_began_before_its_vault_was_purged_is_not_kept() -> None:
    cache = Cache(30)
    ticket = cache.ticket()
    cache.forget_vault("vlt_1")
    cache.put(ticket, "s", REF, MATERIAL, now=0)
    assert cache.get("s", REF, now=1) is None


def test_a_session_and_a_vault_are_forgotten_whole() -> None:
    cache = Cache(30)
    for session in ("a", "b"):
        cache.put(cache.ticket(), session, REF, MATERIAL, now=0)
    cache.forget_session("a")
    assert (cache.get("a", REF, now=1), cache.get("b", REF, now=1)) == (None, MATERIAL)
    cache.forget_vault("vlt_1")
    assert cache.get("b", REF, now=1) is None


def test_a_cache_without_time_keeps_nothing() -> None:
    cache = Cache(0)
    cache.put(cache.ticket(), "s", REF, MATERIAL, now=0)
    assert cache.get("s", REF, now=0) is None


def test_a_cache_is_bounded() -> None:
    cache = Cache(30)
    for number in range(10_000):
        ref = SecretRef("vlt_1", f"vcrd_{number}")
        cache.put(cache.ticket(), "s", ref, MATERIAL, now=0)
        cache.forget(SecretRef("vlt_2", f"vcrd_{number}"))
    kept = [number for number in range(10_000) if cache.get("s", SecretRef("vlt_1", f"vcrd_{number}"), now=1)]
    assert 0 < len(kept) <= 4096
    assert 9_999 in kept


def test_a_breaker_opens_after_failures_in_a_row_and_tries_one_at_a_time() -> None:
    breaker = Breaker()
    for _ in range(5):
        assert breaker.admits(now=0)
        breaker.failed("sealed", now=0)
    assert not breaker.admits(now=0.4)
    assert breaker.admits(now=0.6)
    assert not breaker.admits(now=0.7)
    breaker.succeeded()
    assert breaker.admits(now=0.7)


def test_a_breakers_pauses_grow_to_a_bound() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(50):
        breaker.failed("sealed", now)
        now += 5.0
        assert breaker.admits(now)


def test_failures_with_a_success_between_them_open_nothing() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.failed("slow", now=0)
        breaker.succeeded()
    assert breaker.admits(now=0)


@pytest.mark.anyio
async def test_a_gate_waits_for_those_inside_and_lets_nobody_more_in() -> None:
    gate = Gate("s", frozenset({"v"}), NOW + timedelta(hours=1))
    async with asyncio.TaskGroup() as tasks:
        with gate.passing():
            closing = tasks.create_task(gate.close(timeout_s=5))
            await asyncio.sleep(0)
            assert not closing.done()
            with pytest.raises(SessionClosed), gate.passing():
                pass
    assert closing.result() is True


@pytest.mark.anyio
async def test_a_gate_does_not_wait_for_ever() -> None:
    gate = Gate("s", frozenset(), NOW)
    with gate.passing():
        assert await gate.close(timeout_s=0.01) is False


@pytest.mark.anyio
async def test_a_gate_knows_its_vaults_and_its_end() -> None:
    gate = Gate("s", frozenset({"v"}), NOW + timedelta(hours=1))
    gate.check("v", NOW)
    with pytest.raises(AccessRefused):
        gate.check("other", NOW)
    with pytest.raises(SessionClosed):
        gate.check("v", NOW + timedelta(hours=1))


@pytest.mark.anyio
async def test_an_errand_goes_on_when_nobody_waits_and_its_result_is_given_back() -> None:
    begun, may_end, given_back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> str:
        begun.set()
        await may_end.wait()
        return "lease"

    async def unclaimed(result: str) -> None:
        assert result == "lease"
        given_back.set()

    async with asyncio.timeout(5), Errands.open() as errands:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(errands.run(work(), name="work", unclaimed=unclaimed))
            await begun.wait()
            waiting.cancel()
        may_end.set()
        await given_back.wait()


@pytest.mark.anyio
async def test_an_errands_error_goes_to_whoever_waits() -> None:
    async def fail() -> None:
        raise StoreUnavailable("sealed")

    async with Errands.open() as errands:
        with pytest.raises(StoreUnavailable, match="sealed"):
            await errands.run(fail(), name="fail")


def test_threads_are_bounded_and_carry_results_and_errors() -> None:
    threads = Threads(2, name="test")
    before = threading.active_count()
    try:
        results = [threads.submit(lambda number=number: 10 // number) for number in (1, 2, 5, 0)]  # type: ignore[misc]
        assert [future.result(5) for future in results[:3]] == [10, 5, 2]
        with pytest.raises(ZeroDivisionError):
            results[3].result(5)
        assert threading.active_count() - before <= 2
    finally:
        threads.close()


def test_what_waits_when_threads_are_closed_is_never_begun() -> None:
    threads, hold = Threads(1, name="test"), threading.Event()
    threads.submit(lambda: hold.wait(5))
    waiting = threads.submit(lambda: "begun")
    threads.close()
    hold.set()
    with pytest.raises(CancelledError):
        waiting.result(5)


RIGHT: dict[str, JsonValue] = {
    "entity_id": "e-1",
    "policies": ["galley-vault"],
    "token_policies": ["galley-vault"],
    "orphan": True,
    "token_type": "service",
}


def test_a_token_made_as_asked_for_is_taken() -> None:
    assert mint_fault(RIGHT, VaultMounts()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"entity_id": ""},
        {"entity_id": None},
        {"policies": ["default", "galley-vault"]},
        {"policies": []},
        {"identity_policies": ["admin"]},
        {"orphan": False},
        {"token_type": "batch"},
    ],
)
def test_a_token_made_otherwise_is_not(change: dict[str, JsonValue]) -> None:
    assert mint_fault({**RIGHT, **change}, VaultMounts()) is not None


def test_the_session_policy_names_nothing_but_the_tokens_own_vault() -> None:
    policy = vault_setup.session_policy(VaultMounts(), "auth_token_1", ["rabbitmq"])
    paths = [line.split('"')[1] for line in policy.splitlines() if line.startswith("path")]
    alias = "{{identity.entity.aliases.auth_token_1.name}}"
    assert paths == [
        f"secret/data/galley/{alias}/*",
        f"database/creds/galley-{alias}-*",
        f"pki/issue/galley-{alias}-*",
        f"rabbitmq/creds/galley-{alias}-*",
    ]


def test_the_proxys_policy_has_no_sudo_no_policy_and_no_reading_of_secrets() -> None:
    policy = vault_setup.proxy_policy(VaultMounts())
    assert "sudo" not in policy
    assert "sys/policies" not in policy
    rules = dict(vault_setup.proxy_paths(VaultMounts()))
    assert "read" not in rules["secret/data/galley/*"]
    assert "create" not in rules["transit/encrypt/galley"]
    assert {path for path, needs in rules.items() if "read" in needs} == {"auth/token/lookup-self"}


def test_a_mount_that_could_lead_elsewhere_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        Wanted(dynamic=("../sys",))


@pytest.mark.parametrize(
    ("held", "wanted", "same"),
    [
        (None, [], True),
        ([], [], True),
        (["b", "a"], ["a", "b"], True),
        (["127.0.0.1"], ["127.0.0.1/32"], True),
        (["a"], ["a", "b"], False),
        (None, 0, True),
        (86400, 86400, True),
        (3600, 86400, False),
        (None, True, False),
    ],
)
def test_settings_are_compared_as_vault_shows_them(held: JsonValue, wanted: JsonValue, same: bool) -> None:
    assert same_setting(held, wanted) is same
