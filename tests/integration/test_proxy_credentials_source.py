"""Which credential belongs to a request of a session, and how soon it is another or none."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from galley_vault_proxy.credentials.bodies import read
from galley_vault_proxy.credentials.directory import Directory
from galley_vault_proxy.credentials.shapes import CredentialCreate, CredentialUpdate, VaultCreate
from galley_vault_proxy.errors import AccessRefused, SecretMissing, SessionClosed

from tests.integration.proxy_credentials_kit import Broker, broker

pytestmark = pytest.mark.anyio

URL = "https://mcp.example.com/mcp"


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path / "home") as opened:
        yield opened


async def a_vault(proxy: Broker) -> str:
    return (await proxy.part.vaults.create(VaultCreate(display_name="Alice"))).id


async def bearer(proxy: Broker, vault_id: str, token: str, url: str = URL) -> str:
    body = {"auth": {"type": "static_bearer", "mcp_server_url": url, "token": token}}
    asked = read(CredentialCreate, json.dumps(body).encode())
    return (await proxy.part.credentials.create(vault_id, asked)).id


async def variable(proxy: Broker, vault_id: str, value: str, name: str = "API_KEY", **more: Any) -> str:
    fields = {"secret_name": name, "secret_value": value, "networking": {"type": "unrestricted"}, **more}
    body = {"auth": {"type": "environment_variable", **fields}}
    asked = read(CredentialCreate, json.dumps(body).encode())
    return (await proxy.part.credentials.create(vault_id, asked)).id


async def change(proxy: Broker, vault_id: str, credential_id: str, **auth: Any) -> None:
    asked = read(CredentialUpdate, json.dumps({"auth": auth}).encode())
    await proxy.part.credentials.update(vault_id, credential_id, asked)


async def given(proxy: Broker, vaults: list[str], url: str = URL, session: str = "sesn_1") -> str | None:
    found = await proxy.source.for_mcp(session, vaults, url)
    return None if found is None else found.value.reveal()


async def test_the_url_decides_in_its_normal_form(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    await bearer(proxy, vault_id, "t1", "https://MCP.Example.com:443/mcp/")
    await bearer(proxy, vault_id, "t2", "stdio:git")
    assert await given(proxy, [vault_id], "HTTPS://mcp.example.COM/mcp") == "Bearer t1"
    assert await given(proxy, [vault_id], "stdio:git") == "Bearer t2"
    for other in (
        "https://mcp.example.com",
        "https://mcp.example.com/MCP",
        "https://mcp.example.com/mcp/x",
        "https://mcp.example.com/mcp?tenant=1",
        "https://mcp.example.com:8443/mcp",
        "https://a.mcp.example.com/mcp",
        "http://mcp.example.com/mcp",
        "https://mcp.example.com@evil.example/mcp",
        "stdio:gi",
        "not a url",
    ):
        assert await given(proxy, [vault_id], other) is None


async def test_the_first_vault_wins(proxy: Broker) -> None:
    first, second = await a_vault(proxy), await a_vault(proxy)
    await proxy.session(first, second)
    for vault_id, name in ((second, "second"), (first, "first")):
        await bearer(proxy, vault_id, name)
        await variable(proxy, vault_id, f"value of {name}")
    assert await given(proxy, [first, second]) == "Bearer first"
    assert await given(proxy, [second, first]) == "Bearer second"
    found = await proxy.source.for_host("sesn_1", [second, first])
    assert [credential.secret.reveal() for credential in found] == ["value of second"]
    await proxy.part.vaults.archive(first)
    assert await given(proxy, [first, second]) == "Bearer second"


async def test_a_rotation_is_there_at_the_next_request(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    made = await bearer(proxy, vault_id, "t1")
    before = await proxy.source.for_mcp("sesn_1", [vault_id], URL)
    await change(proxy, vault_id, made, type="static_bearer", token="t2")
    after = await proxy.source.for_mcp("sesn_1", [vault_id], URL)
    assert before is not None
    assert after is not None
    assert (after.value.reveal(), after.version, after.credential_id) == ("Bearer t2", before.version + 1, made)
    assert {secret.reveal() for secret in after.secrets} == {"t2"}


async def test_other_processes_know_of_a_change_within_a_second(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    made = await bearer(proxy, vault_id, "t1")
    async with Directory.open(proxy.state) as elsewhere:
        assert len((await elsewhere.vault(vault_id)).by_key) == 1
        await proxy.part.credentials.archive(vault_id, made)
        async with asyncio.timeout(1):
            while True:
                if not (await elsewhere.vault(vault_id)).by_key:
                    break
                await asyncio.sleep(0.01)


async def test_archiving_purges_at_once(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    made = await bearer(proxy, vault_id, "t1")
    ref = (await proxy.part.credentials.usable(vault_id, made)).ref
    assert await given(proxy, [vault_id]) == "Bearer t1"
    await proxy.part.credentials.archive(vault_id, made)
    assert await given(proxy, [vault_id]) is None
    with pytest.raises(SecretMissing):
        await proxy.store.read_own(ref)
    assert await proxy.source.refresh(made, 1) is False


async def test_no_answer_of_the_store_is_not_an_empty_answer(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    made = await bearer(proxy, vault_id, "t1")
    with pytest.raises(SessionClosed):
        await given(proxy, [vault_id], session="sesn_none")
    await proxy.session(await a_vault(proxy), session_id="sesn_2")
    with pytest.raises(AccessRefused):
        await given(proxy, [vault_id], session="sesn_2")
    await proxy.session(vault_id)
    await proxy.store.purge((await proxy.part.credentials.usable(vault_id, made)).ref)
    with pytest.raises(SecretMissing):
        await given(proxy, [vault_id])


async def test_a_secret_rotated_in_the_store_itself_is_found_after_a_refusal(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    made = await bearer(proxy, vault_id, "t1")
    ref = (await proxy.part.credentials.usable(vault_id, made)).ref
    fields = (await proxy.store.read_own(ref)).fields
    assert await proxy.source.refresh(made, 1) is False
    await proxy.store.write(ref, fields, expected=None)
    assert await proxy.source.refresh(made, 1) is True


async def test_variables_have_placeholders_of_the_right_format_for_each_session(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    await proxy.session(vault_id, session_id="sesn_2")
    made = await variable(
        proxy,
        vault_id,
        "ghp_" + "s" * 36,
        networking={"type": "limited", "allowed_hosts": ["API.github.com", "*.Example.org"]},
        injection_location={"header": True},
    )
    (found,) = await proxy.source.for_host("sesn_1", [vault_id])
    assert (found.credential_id, found.name, found.secret.reveal()) == (made, "API_KEY", "ghp_" + "s" * 36)
    assert found.hosts == ("api.github.com", "*.example.org")
    assert found.locations == {"header"}
    assert found.placeholder.startswith("ghp_")
    assert len(found.placeholder) == 40
    assert await proxy.source.placeholders("sesn_1", [vault_id]) == {"API_KEY": found.placeholder}
    other = await proxy.source.placeholders("sesn_2", [vault_id])
    assert other["API_KEY"] != found.placeholder
    await change(proxy, vault_id, made, type="environment_variable", secret_value="another format")
    (rotated,) = await proxy.source.for_host("sesn_1", [vault_id])
    assert (rotated.placeholder, rotated.secret.reveal()) == (found.placeholder, "another format")


async def test_a_secret_with_a_line_break_goes_into_no_header(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    await variable(proxy, vault_id, "-----BEGIN KEY-----\nx")
    (found,) = await proxy.source.for_host("sesn_1", [vault_id])
    assert found.locations == {"body"}


async def test_placeholders_are_there_before_any_secret_can_be_read(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await variable(proxy, vault_id, "sk-" + "x" * 40)
    assert list(await proxy.source.placeholders("sesn_none", [vault_id])) == ["API_KEY"]


async def test_after_a_restart_everything_is_as_it_was(tmp_path: Path) -> None:
    async with broker(tmp_path / "home") as proxy:
        vault_id = await a_vault(proxy)
        await bearer(proxy, vault_id, "t1")
        await variable(proxy, vault_id, "sk-" + "x" * 40)
        placeholders = await proxy.source.placeholders("sesn_1", [vault_id])
    async with broker(tmp_path / "home") as proxy:
        await proxy.session(vault_id)
        assert await given(proxy, [vault_id]) == "Bearer t1"
        assert await proxy.source.placeholders("sesn_1", [vault_id]) == placeholders


async def test_a_session_of_the_past_gets_nothing(proxy: Broker) -> None:
    vault_id = await a_vault(proxy)
    await proxy.session(vault_id)
    await bearer(proxy, vault_id, "t1")
    proxy.clock.ahead = timedelta(hours=2)
    with pytest.raises(SessionClosed):
        await given(proxy, [vault_id])
