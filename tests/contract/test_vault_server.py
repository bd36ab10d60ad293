"""What Vault itself does, asked of the test server and, with VAULT_ADDR and VAULT_TOKEN, of a real one.

The store relies on each of these. Where the two differ, the test server is wrong.
"""

import base64
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import requests
from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store import vault_setup

from tests.vault_server.server import running

POLICY_SAYS_NO = (403, ["1 error occurred:\n\t* permission denied\n\n"])
TOKEN_IS_DEAD = (403, ["permission denied"])
NO_ACCESSOR = (400, ["1 error occurred:\n\t* invalid accessor\n\n"])
NO_WRAPPING = (400, ["wrapping token is not valid or does not exist"])


@dataclass
class Vault:
    """A Vault as `curl` sees it."""

    address: str
    root: str
    proxy: str = ""
    namespace: str | None = None
    alias: str = field(default_factory=lambda: f"vlt-{secrets.token_hex(8)}")

    def ask(self, method: str, path: str, body: object = None, *, token: str | None = None, wrap: int = 0) -> Any:
        """The parsed answer of a success; what is no success is an error of the test."""
        status, content = self._send(method, path, body, self.root if token is None else token, wrap)
        assert status in {200, 204}, (method, path, status, content)
        return content

    def no(self, method: str, path: str, body: object = None, *, token: str | None = None) -> tuple[int, list[str]]:
        """Status and errors of a refusal."""
        status, content = self._send(method, path, body, self.root if token is None else token, 0)
        assert status >= 400, (method, path, status, content)
        return status, content["errors"]

    def mint(self, alias: str | None = None, ttl: str = "15m") -> dict[str, Any]:
        body = {"entity_alias": alias or self.alias, "meta": {"session": "s", "vault": "v"}, "ttl": ttl}
        made = self.ask("POST", "auth/token/create/galley-session", body, token=self.proxy)["auth"]
        assert isinstance(made, dict)
        return made

    def secret(self, alias: str | None = None) -> str:
        return f"secret/data/galley/{alias or self.alias}/crd-a"

    def _send(self, method: str, path: str, body: object, token: str, wrap: int) -> tuple[int, Any]:
        headers = {"X-Vault-Request": "true", "X-Galley-Session": "s", "Accept-Encoding": "identity"}
        if token:
            headers["X-Vault-Token"] = token
        if wrap:
            headers["X-Vault-Wrap-TTL"] = str(wrap)
        if self.namespace:
            headers["X-Vault-Namespace"] = self.namespace
        data = None if body is None else json.dumps(body)
        answer = requests.request(
            method, f"{self.address}/v1/{path}", data=data, headers=headers, timeout=10, allow_redirects=False
        )
        return answer.status_code, answer.json() if answer.content else {}


def _set_up(vault: Vault) -> None:
    """As `bootstrap` does; written out, so that this page depends on nothing of the store's but its policies."""
    mounts = VaultMounts()
    there = vault.ask("GET", "sys/mounts")["data"]
    if "secret/" not in there:
        vault.ask("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        # For a moment it answers 400: it is being made ready.
        for _ in range(50):
            if vault._send("GET", "secret/config", None, vault.root, 0)[0] == 200:
                break
            time.sleep(0.02)
    if "transit/" not in there:
        vault.ask("POST", "sys/mounts/transit", {"type": "transit"})
    vault.ask("POST", "transit/keys/galley", {"type": "aes256-gcm96"})
    accessor = vault.ask("GET", "sys/auth")["data"]["token/"]["accessor"]
    policy = vault_setup.session_policy(mounts, accessor, ())
    vault.ask("PUT", "sys/policies/acl/galley-vault", {"policy": policy})
    vault.ask("PUT", "sys/policies/acl/galley-proxy", {"policy": vault_setup.proxy_policy(mounts)})
    vault.ask("POST", "auth/token/roles/galley-session", vault_setup.token_role(mounts, ()))
    body = {"policies": ["galley-proxy"], "no_default_policy": True, "ttl": "1h"}
    vault.proxy = vault.ask("POST", "auth/token/create-orphan", body)["auth"]["client_token"]


@pytest.fixture(scope="module", params=["test_vault", "real_vault"])
def server(request: pytest.FixtureRequest) -> Iterator[Callable[[], Vault]]:
    if request.param == "real_vault":
        address, token = os.environ.get("VAULT_ADDR"), os.environ.get("VAULT_TOKEN")
        if not address or not token:
            pytest.skip("VAULT_ADDR and VAULT_TOKEN name no Vault")
        yield lambda: Vault(address, token)
        return
    with running() as made:
        yield lambda: Vault(made.vault.address, made.vault.root_token)
        assert made.vault.unsupported == []


@pytest.fixture
def vault(server: Callable[[], Vault]) -> Vault:
    made = server()
    _set_up(made)
    return made


def test_a_minted_token_is_an_orphan_with_one_policy_and_an_identity(vault: Vault) -> None:
    auth = vault.mint()
    assert auth["policies"] == auth["token_policies"] == ["galley-vault"]
    assert (auth["orphan"], auth["token_type"], auth["renewable"], auth["lease_duration"]) == (
        True,
        "service",
        True,
        900,
    )
    assert auth["metadata"] == {"session": "s", "vault": "v"}
    assert auth["entity_id"]


def test_one_alias_is_one_identity_and_case_does_not_count(vault: Vault) -> None:
    first, again = vault.mint(), vault.mint()
    folded = vault.mint(vault.alias.upper().replace("VLT-", "vlt-"))
    other = vault.mint(f"vlt-{secrets.token_hex(8)}")
    assert first["entity_id"] == again["entity_id"] == folded["entity_id"]
    assert other["entity_id"] != first["entity_id"]


def test_the_template_yields_the_spelling_of_the_first_token(vault: Vault) -> None:
    first = vault.mint()
    odd = vault.alias.upper().replace("VLT-", "vlt-")
    second = vault.mint(odd)
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    assert vault.ask("GET", vault.secret(), token=second["client_token"])["data"]["data"] == {"a": "1"}
    assert vault.no("GET", vault.secret(odd), token=second["client_token"]) == POLICY_SAYS_NO
    assert first["client_token"] != second["client_token"]


@pytest.mark.parametrize("letter", ["*", "+", "/"])
def test_an_alias_that_would_be_a_pattern_opens_nothing(vault: Vault, letter: str) -> None:
    token = vault.mint(f"vlt-{letter}{secrets.token_hex(4)}")["client_token"]
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    assert vault.no("GET", vault.secret(), token=token) == POLICY_SAYS_NO


def test_a_session_token_reads_its_vault_and_nothing_else(vault: Vault) -> None:
    token = vault.mint()["client_token"]
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    assert vault.ask("GET", vault.secret(), token=token)["data"]["data"] == {"a": "1"}
    for method, path in (
        ("GET", vault.secret(f"vlt-{secrets.token_hex(8)}")),
        ("LIST", f"secret/metadata/galley/{vault.alias}"),
        ("POST", vault.secret()),
        ("DELETE", vault.secret()),
        ("GET", "auth/token/lookup-self"),
        ("POST", "auth/token/create/galley-session"),
    ):
        assert vault.no(method, path, {} if method == "POST" else None, token=token) == POLICY_SAYS_NO


@pytest.mark.parametrize(
    "body",
    [
        {"meta": {"session": "s"}, "ttl": "15m"},
        {"entity_alias": "vlt-a", "ttl": "15m"},
        {"entity_alias": "vlt-a", "meta": {}},
        {"entity_alias": "admin", "meta": {}, "ttl": "15m"},
        {"entity_alias": "vlt-a", "meta": {}, "ttl": "15m", "policies": ["root"]},
        {"entity_alias": "vlt-a", "meta": {}, "ttl": "15m", "period": "1h"},
        {"entity_alias": "vlt-a", "meta": {}, "ttl": "15m", "type": "batch"},
        {"entity_alias": "vlt-a", "meta": {}, "ttl": "15m", "id": "known"},
    ],
)
def test_the_proxys_token_mints_in_one_way_only(vault: Vault, body: dict[str, object]) -> None:
    assert vault.no("POST", "auth/token/create/galley-session", body, token=vault.proxy) == POLICY_SAYS_NO


def test_the_role_allows_no_other_alias_whoever_asks(vault: Vault) -> None:
    body = {"entity_alias": "admin", "meta": {"session": "s"}, "ttl": "15m"}
    assert vault.no("POST", "auth/token/create/galley-session", body) == (400, ["invalid 'entity_alias' value"])


def test_the_proxys_token_can_do_no_more_than_it_needs(vault: Vault) -> None:
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    for method, path in (
        ("GET", vault.secret()),
        ("GET", "sys/mounts"),
        ("PUT", "sys/policies/acl/galley-vault"),
        ("POST", "auth/token/roles/galley-session"),
        ("LIST", "auth/token/accessors"),
        ("POST", "auth/token/create-orphan"),
        ("POST", "transit/encrypt/another"),
        ("POST", "transit/keys/galley"),
        ("GET", "sys/audit"),
        ("GET", f"sys/config/auditing/request-headers/{vault_setup.AUDIT_HEADER}"),
    ):
        body: object = {} if method in {"POST", "PUT"} else None
        assert vault.no(method, path, body, token=vault.proxy) == POLICY_SAYS_NO


def test_it_tells_capabilities_of_whoever_asks(vault: Vault) -> None:
    paths = ["auth/token/create/galley-session", vault.secret(), "secret/metadata/galley/a", "sys/mounts"]
    data = vault.ask("POST", "sys/capabilities-self", {"paths": paths}, token=vault.proxy)["data"]
    assert [data[path] for path in paths] == [["update"], ["create", "update"], ["delete", "list"], ["deny"]]


def test_a_dead_token_and_an_unknown_one_and_none_are_told_alike(vault: Vault) -> None:
    token = vault.mint()
    vault.ask("POST", "auth/token/revoke-accessor", {"accessor": token["accessor"]}, token=vault.proxy)
    for dead in (token["client_token"], "s.unknown", "", "no such token"):
        assert vault.no("GET", vault.secret(), token=dead) == TOKEN_IS_DEAD


def test_an_accessor_tells_whether_its_token_lives(vault: Vault) -> None:
    token = vault.mint()
    accessor = {"accessor": token["accessor"]}
    data = vault.ask("POST", "auth/token/lookup-accessor", accessor, token=vault.proxy)["data"]
    assert (data["id"], data["meta"], data["role"], data["orphan"]) == (
        "",
        {"session": "s", "vault": "v"},
        "galley-session",
        True,
    )
    assert data["entity_id"] == token["entity_id"]
    assert 0 < data["ttl"] <= 900
    vault.ask("POST", "auth/token/revoke-accessor", accessor, token=vault.proxy)
    assert vault.no("POST", "auth/token/lookup-accessor", accessor, token=vault.proxy) == NO_ACCESSOR
    assert vault.no("POST", "auth/token/renew-accessor", accessor, token=vault.proxy) == NO_ACCESSOR


def test_revoking_twice_is_a_warning(vault: Vault) -> None:
    accessor = {"accessor": vault.mint()["accessor"]}
    assert vault.ask("POST", "auth/token/revoke-accessor", accessor, token=vault.proxy) == {}
    again = vault.ask("POST", "auth/token/revoke-accessor", accessor, token=vault.proxy)
    assert again["warnings"] == ["No token found with this accessor"]


def test_renewing_by_accessor_shows_no_token(vault: Vault) -> None:
    token = vault.mint(ttl="60s")
    body = {"accessor": token["accessor"], "increment": 600}
    auth = vault.ask("POST", "auth/token/renew-accessor", body, token=vault.proxy)["auth"]
    assert (auth["client_token"], auth["lease_duration"]) == ("", 600)


def test_a_token_whose_identity_is_disabled_is_good_for_nothing_and_still_looked_up(vault: Vault) -> None:
    token = vault.mint()
    vault.ask("POST", f"identity/entity/id/{token['entity_id']}", {"disabled": True})
    assert vault.no("GET", vault.secret(), token=token["client_token"]) == TOKEN_IS_DEAD
    vault.ask("POST", "auth/token/lookup-accessor", {"accessor": token["accessor"]}, token=vault.proxy)
    vault.ask("POST", "auth/token/renew-accessor", {"accessor": token["accessor"]}, token=vault.proxy)
    vault.ask("POST", f"identity/entity/id/{token['entity_id']}", {"disabled": False})


def test_a_deleted_identity_is_another_one_at_the_next_token(vault: Vault) -> None:
    token = vault.mint()
    vault.ask("DELETE", f"identity/entity/id/{token['entity_id']}")
    assert vault.no("GET", vault.secret(), token=token["client_token"]) == TOKEN_IS_DEAD
    assert vault.no("GET", f"identity/entity/id/{token['entity_id']}") == (404, [])
    assert vault.mint()["entity_id"] != token["entity_id"]


def test_compare_and_set(vault: Vault) -> None:
    stale = (400, ["check-and-set parameter did not match the current version"])

    def put(cas: int) -> dict[str, object]:
        return {"data": {"a": "1"}, "options": {"cas": cas}}

    assert vault.no("POST", vault.secret(), put(1), token=vault.proxy) == stale
    assert vault.ask("POST", vault.secret(), put(0), token=vault.proxy)["data"]["version"] == 1
    assert vault.no("POST", vault.secret(), put(0), token=vault.proxy) == stale
    assert vault.ask("POST", vault.secret(), put(1), token=vault.proxy)["data"]["version"] == 2


def test_purging_is_deleting_the_metadata_and_counts_anew(vault: Vault) -> None:
    token = vault.mint()["client_token"]
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}}, token=vault.proxy)
    metadata = vault.secret().replace("/data/", "/metadata/")
    for _ in range(2):
        assert vault.ask("DELETE", metadata, token=vault.proxy) == {}
    assert vault.no("GET", vault.secret(), token=token) == (404, [])
    body = {"data": {"a": "2"}, "options": {"cas": 0}}
    assert vault.ask("POST", vault.secret(), body, token=vault.proxy)["data"]["version"] == 1


def test_a_deleted_version_is_404_with_a_body(vault: Vault) -> None:
    token = vault.mint()["client_token"]
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    vault.ask("DELETE", vault.secret())
    status, content = vault._send("GET", vault.secret(), None, token, 0)
    assert (status, content["data"]["data"]) == (404, None)


def test_names_are_listed_and_none_is_404(vault: Vault) -> None:
    listing = f"secret/metadata/galley/{vault.alias}"
    assert vault.no("LIST", listing, token=vault.proxy) == (404, [])
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    assert vault.ask("LIST", listing, token=vault.proxy)["data"]["keys"] == ["crd-a"]


def test_what_was_sealed_is_bound(vault: Vault) -> None:
    plain, bound, other = (base64.b64encode(each).decode() for each in (b"text", b"vlt_1", b"vlt_2"))
    body = {"plaintext": plain, "associated_data": bound}
    sealed = vault.ask("POST", "transit/encrypt/galley", body, token=vault.proxy)["data"]["ciphertext"]

    def unseal(ciphertext: str, associated: str) -> dict[str, str]:
        return {"ciphertext": ciphertext, "associated_data": associated}

    data = vault.ask("POST", "transit/decrypt/galley", unseal(sealed, bound), token=vault.proxy)["data"]
    assert data["plaintext"] == plain
    for ciphertext, associated, error in (
        (sealed, other, "cipher: message authentication failed"),
        ("nothing", bound, "invalid ciphertext: no prefix"),
        ("", bound, "missing ciphertext to decrypt"),
        ("vault:v9:AAAA", bound, "invalid ciphertext: version is too new"),
    ):
        body = unseal(ciphertext, associated)
        assert vault.no("POST", "transit/decrypt/galley", body, token=vault.proxy) == (400, [error])


def test_a_wrapped_answer_tells_its_origin_and_opens_once(vault: Vault) -> None:
    token = vault.mint()["client_token"]
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    info = vault.ask("GET", vault.secret(), token=token, wrap=60)["wrap_info"]
    assert (info["creation_path"], info["ttl"]) == (vault.secret(), 60)
    looked_up = vault.ask("POST", "sys/wrapping/lookup", {"token": info["token"]}, token="")
    assert looked_up["data"]["creation_path"] == vault.secret()
    assert vault.ask("POST", "sys/wrapping/unwrap", token=info["token"])["data"]["data"] == {"a": "1"}
    assert vault.no("POST", "sys/wrapping/unwrap", token=info["token"]) == NO_WRAPPING
    assert vault.no("POST", "sys/wrapping/lookup", {"token": info["token"]}, token="") == NO_WRAPPING


def test_any_other_use_spends_a_wrapping_token(vault: Vault) -> None:
    token = vault.mint()["client_token"]
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}})
    wrapping = vault.ask("GET", vault.secret(), token=token, wrap=60)["wrap_info"]["token"]
    assert vault.no("GET", vault.secret(), token=wrapping) == POLICY_SAYS_NO
    assert vault.no("POST", "sys/wrapping/unwrap", token=wrapping) == NO_WRAPPING


def test_an_unknown_lease_is_revoked_without_a_word(vault: Vault) -> None:
    body = {"lease_id": "database/creds/none/x", "sync": True}
    assert vault.ask("PUT", "sys/leases/revoke", body, token=vault.proxy) == {}


def test_a_wrong_secret_id_is_told_like_a_wrong_role(vault: Vault) -> None:
    if "approle/" not in vault.ask("GET", "sys/auth")["data"]:
        vault.ask("POST", "sys/auth/approle", {"type": "approle"})
    vault.ask("POST", "auth/approle/role/proxy", vault_setup.login_role(VaultMounts(), ()))
    role_id = vault.ask("GET", "auth/approle/role/proxy/role-id")["data"]["role_id"]
    wrong = (400, ["invalid role or secret ID"])
    assert vault.no("POST", "auth/approle/login", {"role_id": role_id, "secret_id": "x"}, token="") == wrong
    assert vault.no("POST", "auth/approle/login", {"role_id": "x", "secret_id": "x"}, token="") == wrong
    secret_id = vault.ask("POST", "auth/approle/role/proxy/secret-id", {})["data"]["secret_id"]
    auth = vault.ask("POST", "auth/approle/login", {"role_id": role_id, "secret_id": secret_id}, token="")["auth"]
    assert (auth["policies"], auth["lease_duration"], auth["renewable"]) == (["galley-proxy"], 3600, True)


def test_a_call_for_nothing_is_refused(vault: Vault) -> None:
    assert vault.no("GET", "nowhere/at/all") == (
        404,
        ['no handler for route "nowhere/at/all". route entry not found.'],
    )
    assert vault.no("POST", "auth/token/lookup-accessor", {}) == (400, ["1 error occurred:\n\t* missing accessor\n\n"])
    assert vault.no("PUT", "sys/leases/revoke", {}) == (400, ["lease_id must be specified"])
    missing = f"sys/config/auditing/request-headers/x-{secrets.token_hex(4)}"
    assert vault.no("GET", missing) == (400, ["Could not find header in config"])
    assert vault.no("GET", "auth/token/roles/none") == (404, [])


def test_a_namespace_is_a_vault_of_its_own(vault: Vault) -> None:
    if not vault.root.startswith("s."):
        pytest.skip("only OpenBao has namespaces")
    outside = replace(vault)
    vault.ask("POST", "sys/namespaces/team", {})
    vault.namespace = "team"
    _set_up(vault)
    token = vault.mint()
    vault.ask("POST", vault.secret(), {"data": {"a": "1"}}, token=vault.proxy)
    assert vault.ask("GET", vault.secret(), token=token["client_token"])["data"]["data"] == {"a": "1"}
    assert vault.no("GET", "sys/health") == (400, ["operation unavailable in namespaces"])
    elsewhere = (400, ["operation only available in root namespace"])
    assert vault.no("GET", "sys/audit") == elsewhere
    assert vault.no("POST", "sys/config/auditing/request-headers/x-a", {"hmac": False}) == elsewhere
    accessor = {"accessor": token["accessor"]}
    elsewhere = (500, ["1 error occurred:\n\t* cannot lookup token in different namespace\n\n"])
    assert outside.no("POST", "auth/token/revoke-accessor", accessor, token=outside.proxy) == elsewhere
    vault.ask("POST", "auth/token/lookup-accessor", accessor, token=vault.proxy)
    assert outside.no("GET", outside.secret(), token=outside.proxy) == POLICY_SAYS_NO
    vault.ask("POST", "auth/token/revoke-accessor", accessor, token=vault.proxy)
    assert vault.no("POST", "auth/token/lookup-accessor", accessor, token=vault.proxy) == NO_ACCESSOR


def test_an_unknown_namespace_is_told(vault: Vault) -> None:
    if not vault.root.startswith("s."):
        pytest.skip("only OpenBao has namespaces")
    vault.namespace = "nobody"
    assert vault.no("GET", "sys/mounts") == (404, ["namespace not found"])
