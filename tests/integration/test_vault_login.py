"""The proxy's own token: every way to log in, renewal, logging in again, namespaces, and TLS."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from galley_vault_proxy.bootstrap import bootstrap
from galley_vault_proxy.errors import StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import (
    AppRoleAuth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultAuth,
    VaultSettings,
)
from galley_vault_proxy.store.operator import Operator
from galley_vault_proxy.store.vault_adapter import Json, text_of
from galley_vault_proxy.store.vault_setup import Wanted

from tests.contract.secret_store_kit import fields, later, place_of, proxy_token, vault_store
from tests.integration.vault_bench import REF, checked_server, eventually
from tests.vault_server.server import TestVault

pytestmark = pytest.mark.anyio


@pytest.fixture
def vault() -> Iterator[TestVault]:
    with checked_server() as server:
        yield server.vault


def _settings(vault: TestVault, auth: VaultAuth, mount: str, *, timeout_s: float = 2.0) -> VaultSettings:
    return VaultSettings(vault.address, auth, mount, timeout_s=timeout_s)


async def _use(settings: VaultSettings, home: Path) -> None:
    async with vault_store(settings, home) as store:
        await store.write(REF, fields(token="t"), expected=None)
        await store.open_session("sesn_one", (REF.vault_id,), later())
        assert (await store.read("sesn_one", REF)).fields["token"].matches("t")
        await store.ready()


async def _approle(vault: TestVault, **settings: int) -> tuple[str, Secret]:
    """An AppRole as bootstrap makes it; its role id, and a secret id."""
    place = place_of(vault)
    await bootstrap(place.settings(), place.operator, Wanted(approle="proxy"), write=True, say=lambda _: None)
    async with place.acting() as operator:
        if settings:
            await operator.write("auth/approle/role/proxy", settings)
        role_id = await operator.read("auth/approle/role/proxy/role-id")
        assert role_id is not None
        return text_of(role_id.part("data"), "role_id"), await _secret_id(operator)


async def _secret_id(operator: Operator) -> Secret:
    made = await operator.write("auth/approle/role/proxy/secret-id", {})
    return Secret(text_of(made.part("data"), "secret_id"))


async def _wrapped_secret_id(vault: TestVault, path: str = "auth/approle/role/proxy/secret-id") -> Secret:
    def wrap() -> str:
        namespace = vault.root
        role = namespace.logins["approle"].handle("update", "role/proxy/secret-id", {})
        return str(namespace.tokens.wrap(role.body() or {}, path, 300)["token"])

    return Secret(vault.run(wrap))


async def test_a_token_from_a_setting(vault: TestVault, tmp_path: Path) -> None:
    await _use(_settings(vault, TokenAuth(await proxy_token(place_of(vault))), "token"), tmp_path)


async def test_a_token_from_a_file_is_read_again_when_it_is_dead(vault: TestVault, tmp_path: Path) -> None:
    file = tmp_path / "token"
    first, second = await proxy_token(place_of(vault)), await proxy_token(place_of(vault))
    await asyncio.to_thread(file.write_text, first.reveal() + "\n")
    async with vault_store(_settings(vault, TokenFileAuth(file), "token"), tmp_path) as store:
        await store.write(REF, fields(token="t"), expected=None)
        vault.run(lambda: vault.root.tokens.by_id.pop(first.reveal()))
        with pytest.raises(StoreUnavailable, match="GALLEY_VAULT_TOKEN_FILE"):
            await store.write(REF, fields(token="t2"), expected=None)
        await asyncio.to_thread(file.write_text, second.reveal())
        assert await store.write(REF, fields(token="t2"), expected=None) == 2


@pytest.mark.parametrize("content", [None, "", "two words\nand lines", "é"])
async def test_a_token_file_that_holds_no_token_is_named(vault: TestVault, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        await asyncio.to_thread(file.write_text, content)
    async with vault_store(_settings(vault, TokenFileAuth(file), "token"), tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="GALLEY_VAULT_TOKEN_FILE"):
            await store.ready()


async def test_an_approle(vault: TestVault, tmp_path: Path) -> None:
    role_id, secret_id = await _approle(vault)
    await _use(_settings(vault, AppRoleAuth(role_id, secret_id, None), "approle"), tmp_path)


async def test_an_approle_whose_secret_id_is_wrong_is_told_so(vault: TestVault, tmp_path: Path) -> None:
    role_id, _ = await _approle(vault)
    settings = _settings(vault, AppRoleAuth(role_id, Secret("no such"), None), "approle")
    async with vault_store(settings, tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="secret id"):
            await store.ready()


async def test_a_wrapped_secret_id_is_opened_once_and_used_for_every_login(vault: TestVault, tmp_path: Path) -> None:
    role_id, _ = await _approle(vault)
    settings = _settings(vault, AppRoleAuth(role_id, await _wrapped_secret_id(vault), None, wrapped=True), "approle")
    async with vault_store(settings, tmp_path) as store:
        await store.ready()
        _end_all_logins(vault)
        await store.ready()
    assert vault.lines().count("POST sys/wrapping/unwrap") == 1
    assert vault.lines().count("POST auth/approle/login") == 2


async def test_a_wrapping_token_that_somebody_has_opened_is_an_alarm(vault: TestVault, tmp_path: Path) -> None:
    role_id, _ = await _approle(vault)
    wrapping = await _wrapped_secret_id(vault)
    vault.run(lambda: vault.root.tokens.by_id.pop(wrapping.reveal()))
    settings = _settings(vault, AppRoleAuth(role_id, wrapping, None, wrapped=True), "approle")
    async with vault_store(settings, tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="somebody has read the secret id"):
            await store.ready()


async def test_a_wrapping_token_from_elsewhere_is_not_opened(vault: TestVault, tmp_path: Path) -> None:
    role_id, _ = await _approle(vault)
    planted = await _wrapped_secret_id(vault, "cubbyhole/wrapped")
    settings = _settings(vault, AppRoleAuth(role_id, planted, None, wrapped=True), "approle")
    async with vault_store(settings, tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="does not wrap a secret id"):
            await store.ready()
    assert "POST sys/wrapping/unwrap" not in vault.lines()


async def test_a_used_up_secret_id_is_replaced_through_its_file(vault: TestVault, tmp_path: Path) -> None:
    role_id, secret_id = await _approle(vault, secret_id_num_uses=1)
    file = tmp_path / "secret_id"
    await asyncio.to_thread(file.write_text, secret_id.reveal())
    async with vault_store(_settings(vault, AppRoleAuth(role_id, None, file), "approle"), tmp_path) as store:
        await store.ready()
        _end_all_logins(vault)
        with pytest.raises(StoreUnavailable, match="used up"):
            await store.ready()
        async with place_of(vault).acting() as operator:
            await asyncio.to_thread(file.write_text, (await _secret_id(operator)).reveal())
        await store.ready()


@pytest.mark.parametrize("kind", ["jwt", "kubernetes"])
async def test_a_signed_token_from_a_file(vault: TestVault, tmp_path: Path, kind: str) -> None:
    await proxy_token(place_of(vault))
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    config: Json = {"jwt_validation_pubkeys": [public]}
    role: Json = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"]}
    if kind == "kubernetes":
        config = {"kubernetes_host": "https://127.0.0.1:1", "pem_keys": [public]}
        role = {"bound_service_account_names": ["proxy"], "bound_service_account_namespaces": ["galley"]}
    async with place_of(vault).acting() as operator:
        await operator.write(f"sys/auth/{kind}", {"type": kind})
        await operator.write(f"auth/{kind}/config", config)
        common: Json = {"token_policies": ["galley-proxy"], "token_no_default_policy": True, "token_period": 3600}
        await operator.write(f"auth/{kind}/role/proxy", {**common, **role})
    file = tmp_path / "jwt"
    now = int(time.time())
    claims: dict[str, Any] = {"sub": "system:serviceaccount:galley:proxy", "iat": now, "exp": now + 600}
    if kind == "jwt":
        claims["aud"] = "vault"
    await asyncio.to_thread(file.write_text, jwt.encode(claims, private, algorithm="ES256"))
    auth = JwtAuth("proxy", file) if kind == "jwt" else KubernetesAuth("proxy", file)
    await _use(_settings(vault, auth, kind), tmp_path)
    await asyncio.to_thread(file.write_text, "not.a.jwt")
    async with vault_store(_settings(vault, auth, kind), tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="signed token is not accepted"):
            await store.ready()


async def test_the_own_token_is_renewed_before_its_end(vault: TestVault, tmp_path: Path) -> None:
    token = await proxy_token(place_of(vault), ttl="3s")
    async with vault_store(_settings(vault, TokenAuth(token), "token"), tmp_path) as store:
        await store.ready()

        async def renewed() -> bool:
            return "POST auth/token/renew-self" in vault.lines()

        await eventually(renewed)
        await store.ready()


async def test_a_login_at_its_end_is_made_anew_without_a_failed_request(vault: TestVault, tmp_path: Path) -> None:
    role_id, secret_id = await _approle(vault, token_period=0, token_ttl=2, token_max_ttl=2)
    async with vault_store(_settings(vault, AppRoleAuth(role_id, secret_id, None), "approle"), tmp_path) as store:
        await store.ready()

        async def again() -> bool:
            return vault.lines().count("POST auth/approle/login") >= 2

        await eventually(again)
        await store.ready()
    assert [seen.line for seen in vault.seen if seen.status == 403] == []


async def test_many_who_find_the_token_dead_log_in_once(vault: TestVault, tmp_path: Path) -> None:
    role_id, secret_id = await _approle(vault)
    async with vault_store(_settings(vault, AppRoleAuth(role_id, secret_id, None), "approle"), tmp_path) as store:
        await store.ready()
        _end_all_logins(vault)
        await asyncio.gather(*(store.seal("vlt_one", b"x") for _ in range(10)))
    assert vault.lines().count("POST auth/approle/login") == 2


async def test_vault_may_be_away_when_the_proxy_starts(tmp_path: Path) -> None:
    with checked_server() as server:
        token = await proxy_token(place_of(server.vault))
        await asyncio.to_thread(server.kill)
        async with vault_store(_settings(server.vault, TokenAuth(token), "token"), tmp_path) as store:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await store.ready()
            await asyncio.to_thread(server.start)
            await store.ready()


async def test_everything_works_inside_a_namespace(vault: TestVault, tmp_path: Path) -> None:
    root, said = Secret(vault.add_namespace("team")), list[str]()
    inside = replace(_settings(vault, TokenAuth(root), "token"), namespace="team")
    await bootstrap(inside, root, Wanted(), write=True, say=said.append)
    assert [line for line in said if line.startswith("  !")] == [
        "  ! audit header x-galley-session: ask an administrator of the root namespace for "
        "`vault write sys/config/auditing/request-headers/x-galley-session hmac=false`"
    ]
    async with Operator.open(inside, root) as operator:
        body: Json = {"policies": ["galley-proxy"], "no_default_policy": True, "ttl": "1h"}
        made = await operator.write("auth/token/create-orphan", body)
    own = Secret(text_of(made.part("auth"), "client_token"))
    await _use(replace(inside, auth=TokenAuth(own)), tmp_path)
    assert vault.run(lambda: [token for token in vault.namespaces["team"].tokens.by_id.values() if token.role]) == []
    outside = {seen.path for seen in vault.seen if not seen.namespace}
    # These two exist for the whole server only.
    assert outside == {"sys/health", "sys/config/auditing/request-headers/x-galley-session"}


async def test_an_administrator_of_all_namespaces_bootstraps_one(vault: TestVault) -> None:
    vault.add_namespace("team")
    root = Secret(vault.root_token)
    inside = replace(_settings(vault, TokenAuth(root), "token"), namespace="team")
    said: list[str] = []
    await bootstrap(inside, root, Wanted(), write=True, say=said.append)
    assert "  + audit header x-galley-session: in plain text" in said
    assert vault.root.audit_headers == {"x-galley-session": False}


async def test_a_hand_over_works_inside_a_namespace(vault: TestVault, tmp_path: Path) -> None:
    root = Secret(vault.add_namespace("team"))
    inside = replace(_settings(vault, TokenAuth(root), "token"), namespace="team/")
    await bootstrap(inside, root, Wanted(), write=True, say=lambda _: None)
    async with vault_store(inside, tmp_path) as store:
        await store.write(REF, fields(token="t"), expected=None)
        await store.open_session("sesn_one", (REF.vault_id,), later())
        token = await store.wrap("sesn_one", REF, ttl_s=60)
        assert (await store.unwrap(REF, token)).fields["token"].matches("t")


def _end_all_logins(vault: TestVault) -> None:
    def work() -> None:
        tokens = vault.root.tokens
        for token in [token for token in tokens.by_id.values() if token.path.endswith("/login")]:
            del tokens.by_id[token.id]

    vault.run(work)
