"""bootstrap, doctor and reconcile, over a Vault that is empty, right, or wrong."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from galley_vault_proxy import bootstrap, doctor, reconcile
from galley_vault_proxy.doctor import Finding
from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import TokenAuth
from galley_vault_proxy.state import State
from galley_vault_proxy.store import leases
from galley_vault_proxy.store.leases import Leases
from galley_vault_proxy.store.vault_setup import Wanted

from tests.contract.secret_store_kit import place_of, proxy_token
from tests.integration.vault_bench import OTHER, REF, SESSION, VaultBench, checked_server, vault_bench
from tests.vault_server.engines import Kv
from tests.vault_server.server import TestVault


@pytest.fixture
def vault() -> Iterator[TestVault]:
    with checked_server() as server:
        yield server.vault


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[VaultBench]:
    async with vault_bench(tmp_path, timeout_s=1.0) as made:
        yield made


async def _bootstrap(vault: TestVault, wanted: Wanted | None = None, *, write: bool = True) -> tuple[int, list[str]]:
    place, said = place_of(vault), list[str]()
    changes = await bootstrap.bootstrap(
        place.settings(), place.operator, wanted or Wanted(), write=write, say=said.append
    )
    return changes, said


@pytest.mark.anyio
async def test_bootstrap_changes_nothing_the_second_time(vault: TestVault) -> None:
    wanted = Wanted(dynamic=("rabbitmq",), cidrs=("127.0.0.1/32",), approle="proxy")
    first, said = await _bootstrap(vault, wanted)
    assert first == len([line for line in said if line.startswith("  +")]) == 9
    writes = [seen.line for seen in vault.seen if seen.method in {"POST", "PUT"}]
    second, said = await _bootstrap(vault, wanted)
    assert second == 0
    assert [line for line in said if line.startswith("  +")] == []
    assert [seen.line for seen in vault.seen if seen.method in {"POST", "PUT"}] == writes


@pytest.mark.anyio
async def test_a_plan_only_prints(vault: TestVault) -> None:
    changes, said = await _bootstrap(vault, Wanted(approle="proxy"), write=False)
    assert changes == 9
    assert [line for line in said if "policy galley-vault" in line] == ["  ? policy galley-vault: written"]
    assert {seen.method for seen in vault.seen} == {"GET"}


@pytest.mark.anyio
async def test_bootstrap_sets_right_what_somebody_changed(vault: TestVault) -> None:
    await _bootstrap(vault)
    vault.run(lambda: vault.root.policies.update({"galley-proxy": ""}))
    vault.run(lambda: vault.root.tokens.roles["galley-session"].update(token_no_default_policy=False, token_period=60))
    changes, said = await _bootstrap(vault)
    assert changes == 2
    assert "  + token role galley-session: set right: token_no_default_policy, token_period" in said


@pytest.mark.anyio
async def test_bootstrap_touches_no_mount_that_is_something_else(vault: TestVault) -> None:
    await _bootstrap(vault)
    vault.run(lambda: vault.root.engines.update(transit=Kv(vault.clock)))
    with pytest.raises(ConfigError, match="transit/ is not a transit engine"):
        await _bootstrap(vault)


@pytest.mark.anyio
async def test_bootstrap_with_a_token_that_may_not_says_so(vault: TestVault) -> None:
    token = await proxy_token(place_of(vault))
    with pytest.raises(ConfigError, match="operator"):
        await bootstrap.bootstrap(place_of(vault).settings(), token, Wanted(), write=True, say=lambda _: None)


def test_the_commands_name_what_is_not_set() -> None:
    for command in (bootstrap.main, reconcile.main):
        with pytest.raises(ConfigError, match="VAULT_TOKEN"):
            command([], {"VAULT_ADDR": "http://127.0.0.1:1"})
        with pytest.raises(ConfigError, match="VAULT_ADDR"):
            command([], {"VAULT_TOKEN": "t"})


def test_bootstrap_is_a_command(vault: TestVault, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"VAULT_ADDR": vault.address, "VAULT_TOKEN": vault.root_token}
    assert bootstrap.main(["--plan"], environ) == 0
    assert f"{vault.address}: 7 to change" in capsys.readouterr().out
    assert bootstrap.main(["--approle", "proxy"], environ) == 0
    out = capsys.readouterr().out
    assert f"{vault.address}: 9 changed" in out
    assert "GALLEY_VAULT_ROLE_ID=" in out
    assert vault.root_token not in out


async def _findings(bench: VaultBench, operator: Secret | None = None) -> dict[str, Finding]:
    return {finding.name: finding async for finding in doctor.examine(bench.settings, operator)}


@pytest.mark.anyio
async def test_the_doctor_finds_nothing_wrong_with_a_vault_that_is_right(bench: VaultBench) -> None:
    found = await _findings(bench, Secret(bench.vault.root_token))
    assert {name: finding.verdict for name, finding in found.items()} == {
        "server": "ok",
        "login": "ok",
        "own capabilities": "ok",
        "session tokens": "ok",
        "standby reads": "ok",
        "sealing": "ok",
        "audit log": "ok",
    }


@pytest.mark.anyio
async def test_the_doctor_leaves_nothing_behind(bench: VaultBench) -> None:
    await _findings(bench)
    assert bench.own_tokens() == []
    assert sorted(bench.vault.root.kv()._secrets) == sorted(
        seen.path.removeprefix("secret/data/")
        for seen in bench.vault.seen[: bench.began[0]]
        if "secret/data" in seen.path
    )


def _old(vault: TestVault) -> None:
    vault.version = "2.5.1"


def _sealed(vault: TestVault) -> None:
    vault.trouble = "sealed"


def _stale(vault: TestVault) -> None:
    vault.root.kv().stale_reads = 5


def _no_policy(vault: TestVault) -> None:
    vault.root.policies["galley-proxy"] = vault.root.policies["galley-proxy"].replace("transit/encrypt", "transit/none")


def _reading(vault: TestVault) -> None:
    policies = vault.root.policies
    policies["galley-proxy"] = policies["galley-proxy"].replace('["create", "update"]', '["create", "read", "update"]')


def _wide(vault: TestVault) -> None:
    vault.root.policies["galley-vault"] = 'path "secret/data/galley/*" {\n  capabilities = ["read"]\n}\n'


def _roleless(vault: TestVault) -> None:
    vault.root.tokens.roles.clear()


def _unaudited(vault: TestVault) -> None:
    vault.root.audit_headers.clear()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("harm", "where", "fix"),
    [
        (_old, "server", "2.6"),
        (_sealed, "server", "unseal"),
        (_stale, "standby reads", "disable_standby_reads"),
        (_no_policy, "own capabilities", "bootstrap"),
        (_reading, "own capabilities", "bootstrap"),
        (_wide, "session tokens", "bootstrap"),
        (_roleless, "session tokens", "bootstrap"),
        (_unaudited, "audit log", "bootstrap"),
    ],
)
async def test_the_doctor_finds_what_is_wrong_and_says_what_helps(
    bench: VaultBench, harm: Callable[[TestVault], None], where: str, fix: str
) -> None:
    bench.vault.run(lambda: harm(bench.vault))
    found = await _findings(bench, Secret(bench.vault.root_token))
    assert {name for name, finding in found.items() if finding.verdict == "fail"} == {where}
    assert fix in found[where].fix


@pytest.mark.anyio
async def test_the_doctor_does_not_like_a_root_token(bench: VaultBench) -> None:
    settings = replace(bench.settings, auth=TokenAuth(Secret(bench.vault.root_token)))
    found = {finding.name: finding async for finding in doctor.examine(settings, None)}
    assert found["login"].verdict == "fail"


@pytest.mark.anyio
async def test_the_doctor_does_not_claim_what_it_could_not_see(bench: VaultBench) -> None:
    found = await _findings(bench)
    assert found["audit log"].verdict == "unknown"


def test_the_doctor_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([], {"GALLEY_PROXY_HOME": str(tmp_path)}) == 0
    assert "ok      embedded store" in capsys.readouterr().out
    environ = {"GALLEY_PROXY_HOME": str(tmp_path), "VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t"}
    assert doctor.main([], environ) == 1
    assert "FAILED  server: Vault cannot be reached" in capsys.readouterr().out


async def _differences(bench: VaultBench, *, repair: bool = False, after_s: float = 0) -> tuple[int, list[str]]:
    said: list[str] = []
    operator, now = Secret(bench.vault.root_token), time.time() + after_s
    count = await reconcile.reconcile(bench.settings, operator, bench.home, repair=repair, say=said.append, now=now)
    return count, said


async def _forget_accessors(bench: VaultBench) -> None:
    """As if the state had been restored from an old backup."""
    async with State.open(bench.home / "state.db", [leases.SCHEMA]) as state:
        known = Leases(state)
        for accessor in await known.accessors():
            await known.remove(accessor)


@pytest.mark.anyio
async def test_reconcile_finds_no_difference_in_a_running_proxy(bench: VaultBench) -> None:
    await bench.read(REF)
    await bench.read(OTHER)
    assert await _differences(bench) == (0, ["2 session tokens at Vault"])


@pytest.mark.anyio
async def test_reconcile_finds_and_ends_tokens_that_the_state_forgot(bench: VaultBench) -> None:
    await bench.read()
    await _forget_accessors(bench)
    assert (await _differences(bench))[0] == 0  # it may be one that is only now being recorded
    count, said = await _differences(bench, after_s=120)
    assert (count, said[1]) == (1, f"  unknown here: a token of session {SESSION} for vlt_one")
    assert bench.own_tokens() != []
    await _differences(bench, repair=True, after_s=120)
    assert bench.own_tokens() == []


@pytest.mark.anyio
async def test_reconcile_brings_a_vault_back_whose_identity_was_deleted(bench: VaultBench) -> None:
    await bench.read()
    bench.vault.run(bench.vault.root.tokens.entities.clear)
    count, said = await _differences(bench, repair=True)
    assert (count, said[1]) == (1, "  gone from Vault: the identity of vlt_one, so no secret of it is read")
    await bench.store.close_session(SESSION)
    assert (await _differences(bench))[0] == 0


@pytest.mark.anyio
async def test_reconcile_deletes_the_identity_of_a_deleted_vault(bench: VaultBench) -> None:
    await bench.read()
    await bench.store.purge_vault("vlt_one")
    count, _ = await _differences(bench, repair=True)
    assert count == 1
    assert bench.vault.run(lambda: dict(bench.vault.root.tokens.entities)) == {}
    assert (await _differences(bench))[0] == 0


@pytest.mark.anyio
async def test_reconcile_wants_the_state_of_a_proxy(bench: VaultBench, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GALLEY_PROXY_HOME"):
        await reconcile.reconcile(
            bench.settings, Secret("t"), tmp_path / "none", repair=False, say=lambda _: None, now=0
        )
