"""`/v1/vaults` and credentials of the vault proxy, driven by the official SDK; every answer is held to its types."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaManagedAgentsDeletedVault, BetaManagedAgentsVault
from anthropic.types.beta.vaults import BetaManagedAgentsCredential, BetaManagedAgentsDeletedCredential

from tests.contract.sdk_strict import left_out, validate
from tests.integration.proxy_credentials_kit import Broker, broker

pytestmark = pytest.mark.anyio

URL = "https://mcp.example.com/mcp"
BEARER: Any = {"type": "static_bearer", "mcp_server_url": URL, "token": "tok-planted-bearer"}
VARIABLE: Any = {
    "type": "environment_variable",
    "secret_name": "API_KEY",
    "secret_value": "sk-planted-value-000000000000",
    "networking": {"type": "limited", "allowed_hosts": ["api.example.com", "*.example.org"]},
}


def bearer(**more: Any) -> Any:
    return {**BEARER, **more}


def variable(**more: Any) -> Any:
    return {**VARIABLE, **more}


def oauth(**more: Any) -> Any:
    return {
        "type": "mcp_oauth",
        "mcp_server_url": URL,
        "access_token": "at-planted",
        "expires_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        "refresh": {
            "client_id": "client-1",
            "refresh_token": "rt-planted",
            "token_endpoint": "https://auth.example.com/token",
            "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "cs-planted"},
            "resource": "https://mcp.example.com/mcp",
            "scope": "read write",
        },
        **more,
    }


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
async def sdk(proxy: Broker) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with proxy.sdk() as client:
        yield client


async def a_vault(sdk: anthropic.AsyncAnthropic) -> str:
    return (await sdk.beta.vaults.create(display_name="Alice")).id


async def exact(kind: Any, answer: Any) -> Any:
    raw = await answer.read()
    validate(kind, raw)
    assert list(left_out(kind, json.loads(raw))) == []
    return json.loads(raw)


async def test_a_vault_lives_through_all_of_its_calls(sdk: anthropic.AsyncAnthropic) -> None:
    vaults = sdk.beta.vaults.with_raw_response
    raw = await vaults.create(display_name="Alice", metadata={"team": "a"})
    made = await exact(BetaManagedAgentsVault, raw)
    assert made["id"].startswith("vlt_")
    got = await vaults.retrieve(made["id"])
    assert await exact(BetaManagedAgentsVault, got) == made
    changed = await sdk.beta.vaults.update(made["id"], display_name="Bob", metadata={"team": None, "new": "x"})
    assert (changed.display_name, changed.metadata) == ("Bob", {"new": "x"})
    archived = await exact(BetaManagedAgentsVault, await vaults.archive(made["id"]))
    assert archived["archived_at"] is not None
    gone = await vaults.delete(made["id"])
    assert await exact(BetaManagedAgentsDeletedVault, gone) == {"id": made["id"], "type": "vault_deleted"}
    with pytest.raises(anthropic.NotFoundError, match=made["id"]):
        await sdk.beta.vaults.retrieve(made["id"])


@pytest.mark.parametrize(
    "auth", [oauth(), BEARER, VARIABLE], ids=["mcp_oauth", "static_bearer", "environment_variable"]
)
async def test_a_credential_lives_through_all_of_its_calls(sdk: anthropic.AsyncAnthropic, auth: Any) -> None:
    vault_id = await a_vault(sdk)
    calls = sdk.beta.vaults.credentials.with_raw_response
    raw = await calls.create(vault_id, auth=auth, display_name="Key", metadata={"a": "b"})
    made = await exact(BetaManagedAgentsCredential, raw)
    assert made["id"].startswith("vcrd_")
    assert "planted" not in await raw.text()
    got = await calls.retrieve(made["id"], vault_id=vault_id)
    assert await exact(BetaManagedAgentsCredential, got) == made
    changed = await calls.update(made["id"], vault_id=vault_id, display_name=None, metadata={"a": None})
    after = await exact(BetaManagedAgentsCredential, changed)
    assert (after["metadata"], after["display_name"]) == ({}, None)
    listed = await sdk.beta.vaults.credentials.list(vault_id)
    assert [item.id for item in listed.data] == [made["id"]]
    archived = await exact(BetaManagedAgentsCredential, await calls.archive(made["id"], vault_id=vault_id))
    assert archived["archived_at"] is not None
    gone = await calls.delete(made["id"], vault_id=vault_id)
    deleted = await exact(BetaManagedAgentsDeletedCredential, gone)
    assert deleted == {"id": made["id"], "type": "vault_credential_deleted"}


async def test_the_synchronous_sdk_does_the_same(proxy: Broker) -> None:
    def drive() -> list[str]:
        with proxy.sync_sdk() as sdk:
            vault = sdk.beta.vaults.create(display_name="Sync")
            made = sdk.beta.vaults.credentials.create(vault.id, auth=BEARER)
            sdk.beta.vaults.credentials.update(
                made.id, vault_id=vault.id, auth={"type": "static_bearer", "token": "t2"}
            )
            sdk.beta.vaults.credentials.archive(made.id, vault_id=vault.id)
            listed = [item.id for item in sdk.beta.vaults.credentials.list(vault.id, include_archived=True)]
            sdk.beta.vaults.credentials.delete(made.id, vault_id=vault.id)
            sdk.beta.vaults.delete(vault.id)
            return [made.id, *listed]

    made, listed = await asyncio.to_thread(drive)
    assert made == listed


async def test_lists_are_newest_first_in_pages_and_hide_what_is_archived(sdk: anthropic.AsyncAnthropic) -> None:
    ids = [(await sdk.beta.vaults.create(display_name=f"v{n}")).id for n in range(25)]
    await sdk.beta.vaults.archive(ids[3])
    first = await sdk.beta.vaults.list()
    assert [vault.id for vault in first.data] == ids[:4:-1]
    assert [vault.id async for vault in sdk.beta.vaults.list(limit=7)] == [i for i in reversed(ids) if i != ids[3]]
    assert [vault.id async for vault in sdk.beta.vaults.list(limit=100, include_archived=True)] == ids[::-1]


@pytest.mark.parametrize(
    ("query", "named"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"page": "nonsense"}, "page"), ({"wrong": 1}, "wrong")],
)
async def test_a_query_that_is_wrong_is_refused_by_name(
    sdk: anthropic.AsyncAnthropic, query: dict[str, Any], named: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=named):
        await sdk.beta.vaults.list(extra_query=query)


async def test_a_key_is_taken_once_per_vault_and_free_again_after_archiving(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    credentials = sdk.beta.vaults.credentials
    first = await credentials.create(vault_id, auth=BEARER)
    spelled = oauth(mcp_server_url="HTTPS://MCP.example.com:443/mcp/")
    with pytest.raises(anthropic.ConflictError, match=f"mcp_server_url: {first.id}"):
        await credentials.create(vault_id, auth=spelled)
    await credentials.create(vault_id, auth=bearer(mcp_server_url="https://mcp.example.com:8443/mcp"))
    await credentials.create(await a_vault(sdk), auth=BEARER)
    await credentials.archive(first.id, vault_id=vault_id)
    assert (await credentials.create(vault_id, auth=spelled)).id != first.id


async def test_a_vault_takes_twenty_credentials(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    credentials = sdk.beta.vaults.credentials
    made = [await credentials.create(vault_id, auth=variable(secret_name=f"KEY_{n}")) for n in range(20)]
    with pytest.raises(anthropic.BadRequestError, match="holds 20 credentials"):
        await credentials.create(vault_id, auth=BEARER)
    await credentials.archive(made[0].id, vault_id=vault_id)
    await credentials.create(vault_id, auth=BEARER)


async def test_an_archived_vault_takes_its_credentials_with_it(proxy: Broker, sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    made = await sdk.beta.vaults.credentials.create(vault_id, auth=BEARER)
    session = await proxy.session(vault_id)
    assert await proxy.source.for_mcp(session, [vault_id], URL) is not None
    archived = await sdk.beta.vaults.archive(vault_id)
    assert (await sdk.beta.vaults.archive(vault_id)).archived_at == archived.archived_at
    assert await proxy.source.for_mcp(session, [vault_id], URL) is None
    shown = await sdk.beta.vaults.credentials.retrieve(made.id, vault_id=vault_id)
    assert shown.archived_at == archived.archived_at
    for refused in (
        sdk.beta.vaults.credentials.create(vault_id, auth=VARIABLE),
        sdk.beta.vaults.update(vault_id, display_name="x"),
        sdk.beta.vaults.credentials.update(made.id, vault_id=vault_id, display_name="x"),
    ):
        with pytest.raises(anthropic.BadRequestError, match="is archived"):
            await refused


async def test_what_is_locked_cannot_be_changed(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    made = await sdk.beta.vaults.credentials.create(vault_id, auth=oauth())
    for field, auth in (
        ("auth.mcp_server_url", {"type": "mcp_oauth", "mcp_server_url": "https://other.example.com"}),
        ("auth.refresh.token_endpoint", {"type": "mcp_oauth", "refresh": {"token_endpoint": "https://evil.example"}}),
        ("auth.refresh.client_id", {"type": "mcp_oauth", "refresh": {"client_id": "other"}}),
        ("auth.type", {"type": "static_bearer", "token": "x"}),
    ):
        with pytest.raises(anthropic.BadRequestError, match=f"{field}: .*cannot be changed|{field}: Cannot be changed"):
            await sdk.beta.vaults.credentials.update(made.id, vault_id=vault_id, auth=auth)  # type: ignore[arg-type]


async def test_an_update_merges(proxy: Broker, sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    made = await sdk.beta.vaults.credentials.create(vault_id, auth=oauth())
    changed = await sdk.beta.vaults.credentials.update(
        made.id,
        vault_id=vault_id,
        auth={
            "type": "mcp_oauth",
            "access_token": "at-2",
            "refresh": {"scope": "", "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "cs-2"}},
        },
    )
    assert changed.auth.type == "mcp_oauth"
    assert changed.auth.expires_at == made.auth.expires_at  # type: ignore[union-attr]
    assert changed.auth.refresh is not None
    assert (changed.auth.refresh.scope, changed.auth.refresh.token_endpoint_auth.type) == (None, "client_secret_basic")
    ref = (await proxy.part.credentials.usable(vault_id, made.id)).ref
    stored = {name: value.reveal() for name, value in (await proxy.store.read_own(ref)).fields.items()}
    assert (stored["access_token"], stored["client_secret"], stored["refresh_token"]) == ("at-2", "cs-2", "rt-planted")


async def test_injection_places_default_and_merge(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    credentials = sdk.beta.vaults.credentials
    both = await credentials.create(vault_id, auth=VARIABLE)
    one = await credentials.create(vault_id, auth=variable(secret_name="OTHER", injection_location={"header": True}))
    assert both.auth.type == one.auth.type == "environment_variable"
    assert (both.auth.injection_location.header, both.auth.injection_location.body) == (True, True)
    assert (one.auth.injection_location.header, one.auth.injection_location.body) == (True, False)
    less = await credentials.update(
        both.id, vault_id=vault_id, auth={"type": "environment_variable", "injection_location": {"body": False}}
    )
    assert less.auth.injection_location.model_dump() == {"header": True, "body": False}  # type: ignore[union-attr]
    with pytest.raises(anthropic.BadRequestError, match="injection_location: At least one"):
        await credentials.update(
            both.id, vault_id=vault_id, auth={"type": "environment_variable", "injection_location": {"header": False}}
        )
    unlimited = await credentials.update(
        both.id, vault_id=vault_id, auth={"type": "environment_variable", "networking": {"type": "unrestricted"}}
    )
    assert unlimited.auth.networking.type == "unrestricted"  # type: ignore[union-attr]


WRONG: list[tuple[str, Any]] = [
    ("auth: Field required", {}),
    ("auth.type: Field required", {"auth": {"token": "planted"}}),
    ("auth.type: Input should be 'mcp_oauth', .*got 'planted_type'", {"auth": {"type": "planted_type"}}),
    ("auth.mcp_server_url: Field required", {"auth": {"type": "static_bearer", "token": "planted"}}),
    ("auth.mcp_server_url: Give an http", {"auth": {**BEARER, "mcp_server_url": "ftp://x"}}),
    ("auth.mcp_server_url: Give an http", {"auth": {**BEARER, "mcp_server_url": "https://u:planted@x/"}}),
    ("auth.mcp_server_url: Give an http", {"auth": {**oauth(), "mcp_server_url": "stdio:git"}}),
    ("auth.token: Give the token alone", {"auth": {**BEARER, "token": "planted\r\nx: y"}}),
    ("auth.token: Input should be a valid string", {"auth": {**BEARER, "token": ["planted"]}}),
    ("auth.tokn: Unknown field", {"auth": {**BEARER, "tokn": "planted"}}),
    ("auth.secret_name: Use letters", {"auth": {**VARIABLE, "secret_name": "A-B"}}),
    ("auth.secret_value: String should", {"auth": {**VARIABLE, "secret_value": ""}}),
    ("auth.networking.type: Input should be", {"auth": {**VARIABLE, "networking": {"type": "open"}}}),
    *(
        (
            rf"auth.networking.allowed_hosts.1: Give a host name.*got '{shown}'",
            {"auth": {**VARIABLE, "networking": {"type": "limited", "allowed_hosts": ["a.example", host]}}},
        )
        for host, shown in (
            ("https://a.example/x", "https://a.example/x"),
            ("a.example:443", "a.example:443"),
            ("a.example/x", "a.example/x"),
            ("::1", "::1"),
            ("a.*.example", r"a\.\*\.example"),
        )
    ),
    (
        "allowed_hosts: Array should have at most 16 items",
        {
            "auth": {
                **VARIABLE,
                "networking": {"type": "limited", "allowed_hosts": [f"h{n}.example" for n in range(17)]},
            }
        },
    ),
    ("auth.injection_location: At least one", {"auth": {**VARIABLE, "injection_location": {}}}),
    ("auth.injection_location: Input should be", {"auth": {**VARIABLE, "injection_location": None}}),
    ("auth.injection_location.header: Input should be", {"auth": {**VARIABLE, "injection_location": {"header": None}}}),
    ("auth.expires_at: Give a time in the future", {"auth": oauth(expires_at="2020-01-01T00:00:00Z")}),
    ("auth.expires_at", {"auth": oauth(expires_at="planted")}),
    ("auth.expires_at: Give a time zone", {"auth": oauth(expires_at="2999-01-01T00:00:00")}),
    ("display_name: String should have at most 255 characters.*got 256", {"auth": BEARER, "display_name": "x" * 256}),
    ("metadata: Metadata should have at most 16", {"auth": BEARER, "metadata": {str(n): "" for n in range(17)}}),
    ("metadata.a: Value should have at most 512", {"auth": BEARER, "metadata": {"a": "x" * 513}}),
]


@pytest.mark.parametrize(("sentence", "body"), WRONG, ids=[sentence[:40] for sentence, _ in WRONG])
async def test_bad_input_is_named_and_nothing_secret_repeated(
    proxy: Broker, sdk: anthropic.AsyncAnthropic, sentence: str, body: Any
) -> None:
    vault_id = await a_vault(sdk)
    with pytest.raises(anthropic.BadRequestError, match=sentence) as refused:
        await sdk.post(f"/v1/vaults/{vault_id}/credentials", body=body, cast_to=object)
    assert "planted" not in refused.value.message.replace("planted_type", "")


async def test_what_is_not_there_is_named(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id, other = await a_vault(sdk), await a_vault(sdk)
    made = await sdk.beta.vaults.credentials.create(vault_id, auth=BEARER)
    for call in (
        sdk.beta.vaults.credentials.retrieve(made.id, vault_id=other),
        sdk.beta.vaults.credentials.delete(made.id, vault_id=other),
        sdk.beta.vaults.credentials.update("vcrd_none", vault_id=vault_id, display_name="x"),
        sdk.beta.vaults.credentials.list("vlt_none"),
        sdk.beta.vaults.archive("vlt_none"),
        sdk.beta.vaults.delete("vlt_none"),
    ):
        with pytest.raises(anthropic.NotFoundError, match=r"(vcrd|vlt)_\w+ is not a (credential|vault) of"):
            await call


async def test_without_the_service_key_nothing_is_told(proxy: Broker) -> None:
    async with anthropic.AsyncAnthropic(api_key="wrong", base_url=proxy.url, max_retries=0) as sdk:
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.beta.vaults.list()


async def test_a_repeated_create_answers_the_same_and_another_body_is_refused(
    proxy: Broker, sdk: anthropic.AsyncAnthropic
) -> None:
    vault_id = await a_vault(sdk)
    header = {"idempotency-key": "once-1"}
    twins = [sdk.beta.vaults.credentials.create(vault_id, auth=BEARER, extra_headers=header) for _ in range(5)]
    made = {credential.id for credential in await asyncio.gather(*twins)}
    assert len(made) == 1
    assert [item.id for item in (await sdk.beta.vaults.credentials.list(vault_id)).data] == list(made)
    with pytest.raises(anthropic.BadRequestError, match="idempotency-key: 'once-1' was used for another request"):
        await sdk.beta.vaults.credentials.create(vault_id, auth=bearer(token="another"), extra_headers=header)
    vaults = [await sdk.beta.vaults.create(display_name="v", extra_headers={"idempotency-key": "v1"}) for _ in range(2)]
    assert vaults[0] == vaults[1]


async def test_a_repeated_update_answers_the_same(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    made = await sdk.beta.vaults.credentials.create(vault_id, auth=BEARER)
    first, second = [
        await sdk.beta.vaults.credentials.update(
            made.id,
            vault_id=vault_id,
            auth={"type": "static_bearer", "token": "t2"},
            extra_headers={"idempotency-key": "u1"},
        )
        for _ in range(2)
    ]
    assert first == second


async def test_only_oauth_can_be_validated(sdk: anthropic.AsyncAnthropic) -> None:
    vault_id = await a_vault(sdk)
    made = await sdk.beta.vaults.credentials.create(vault_id, auth=BEARER)
    with pytest.raises(anthropic.BadRequestError, match="only an 'mcp_oauth' credential"):
        await sdk.beta.vaults.credentials.mcp_oauth_validate(made.id, vault_id=vault_id)
