"""`/v1/vaults` on the Galley server, with the official SDK: passed on to the vault proxy as bytes, and back."""

from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.integration.broker_kit import KEY, TOOLSET, House, house

pytestmark = pytest.mark.anyio

BEARER: Any = {"type": "static_bearer", "mcp_server_url": "https://mcp.example.com/mcp", "token": "bearer-secret-0001"}
VARIABLE: Any = {
    "type": "environment_variable",
    "secret_name": "API_TOKEN",
    "secret_value": "variable-secret-0001",
    "networking": {"type": "limited", "allowed_hosts": ["api.example.com"]},
}
OAUTH: Any = {
    "type": "mcp_oauth",
    "mcp_server_url": "https://other.example.com/mcp",
    "access_token": "access-secret-0001",
    "refresh": {
        "client_id": "client",
        "refresh_token": "refresh-secret-0001",
        "token_endpoint": "https://auth.example.com/token",
        "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "client-secret-0001"},
    },
}


async def test_every_call_of_the_official_sdk_is_served(tmp_path: Path) -> None:
    async with house(tmp_path) as galley:
        vaults = galley.client.beta.vaults
        vault = await vaults.create(display_name="Alice", metadata={"team": "a"})
        assert (await vaults.retrieve(vault.id)).display_name == "Alice"
        assert (await vaults.update(vault.id, display_name="Bob")).display_name == "Bob"
        assert [one.id async for one in vaults.list()] == [vault.id]
        made = [await vaults.credentials.create(vault.id, auth=auth) for auth in (BEARER, VARIABLE, OAUTH)]
        assert [one.auth.type for one in made] == ["static_bearer", "environment_variable", "mcp_oauth"]
        assert {one.id async for one in vaults.credentials.list(vault.id)} == {one.id for one in made}
        bearer, variable, oauth = (one.id for one in made)
        assert (await vaults.credentials.retrieve(bearer, vault_id=vault.id)).id == bearer
        rotated: Any = {"type": "static_bearer", "token": "bearer-secret-0002"}
        assert (await vaults.credentials.update(bearer, vault_id=vault.id, auth=rotated)).id == bearer
        validated = await vaults.credentials.mcp_oauth_validate(oauth, vault_id=vault.id)
        assert (validated.credential_id, validated.status) == (oauth, "unknown")
        assert (await vaults.credentials.archive(variable, vault_id=vault.id)).archived_at is not None
        assert (await vaults.credentials.delete(bearer, vault_id=vault.id)).type == "vault_credential_deleted"
        assert (await vaults.archive(vault.id)).archived_at is not None
        assert (await vaults.delete(vault.id)).type == "vault_deleted"


async def test_no_answer_shows_what_is_secret(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.http() as http:
        vault = (await http.post("/v1/vaults", json={"display_name": "Alice"})).json()["id"]
        said = [await http.post(f"/v1/vaults/{vault}/credentials", json={"auth": auth}) for auth in (BEARER, VARIABLE)]
        wrong = {"auth": {**BEARER, "mcp_server_url": "https://third.example.com", "token": ["bearer-secret-0001"]}}
        said.append(await http.post(f"/v1/vaults/{vault}/credentials", json=wrong))
        said.append(await http.get(f"/v1/vaults/{vault}/credentials"))
        assert [one.status_code for one in said] == [200, 200, 400, 200]
        assert not any("secret-0001" in one.text for one in said)


async def test_a_refusal_is_the_proxys_own_with_one_request_id_in_both_logs(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.http() as http:
        vault = (await http.post("/v1/vaults", json={"display_name": "Alice"})).json()["id"]
        answer = await http.post(f"/v1/vaults/{vault}/credentials", json={"auth": {**VARIABLE, "secret_name": "1 x"}})
        found = answer.json()
        assert (answer.status_code, found["error"]["type"]) == (400, "invalid_request_error")
        assert "secret_name" in found["error"]["message"]
        assert found["request_id"] == answer.headers["request-id"]


async def test_what_is_no_json_is_the_proxys_to_refuse(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.http() as http:
        broken = await http.post(
            "/v1/vaults", content=b'{"display_name": "A', headers={"content-type": "application/json"}
        )
        assert (broken.status_code, "JSON" in broken.json()["error"]["message"]) == (400, True)
        large = await http.post("/v1/vaults", content=b"x" * (2 << 20), headers={"content-type": "application/json"})
        assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/vaults/..", "/v1/vaults/../grants", "/v1/vaults/vlt_1%2f..%2f..%2fgrants"])
async def test_a_path_leads_nowhere_but_where_it_says(tmp_path: Path, path: str) -> None:
    """What goes to the proxy goes with its service key, so a path must not be read in two ways."""
    async with house(tmp_path) as galley:
        # Not through a client that would tidy the path up.
        reader, writer = await open_raw(galley)
        writer.write(f"DELETE {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 405"))


async def open_raw(galley: House) -> Any:
    import asyncio

    return await asyncio.open_connection(galley.kitchen.address.host, galley.kitchen.address.port)


async def test_repeating_a_create_makes_one_vault(tmp_path: Path) -> None:
    async with house(tmp_path) as galley:
        again = {"Idempotency-Key": "once-and-only"}
        first = await galley.client.beta.vaults.create(display_name="Alice", extra_headers=again)
        second = await galley.client.beta.vaults.create(display_name="Alice", extra_headers=again)
        assert first.id == second.id


async def test_no_key_no_vault(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.http() as http:
        for path in ("/v1/vaults", "/v1/audit", "/v1/oauth/logins/x", "/v1/mcp_pins"):
            answer = await http.get(path, headers={"x-api-key": "wrong-key-wrong-key"})
            assert (path, answer.status_code) == (path, 401)


async def test_what_is_the_servers_own_business_with_the_proxy_is_nobody_elses(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.http() as http:
        for method, path in (("POST", "/v1/grants"), ("GET", "/v1/egress"), ("DELETE", "/v1/grants/grant_1")):
            answer = await http.request(method, path, json={} if method == "POST" else None)
            assert (path, answer.status_code) == (path, 404)


async def test_pages_for_browsers_are_behind_no_key_and_reach_nothing_else(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.http() as http:
        open_page = await http.get("/oauth/client.json", headers={"x-api-key": ""})
        assert (open_page.status_code, galley.url in open_page.text) == (200, True)
        callback = await http.get("/oauth/callback", params={"state": "unknown"}, headers={"x-api-key": ""})
        assert callback.status_code == 400
        assert callback.headers["content-type"].startswith("text/html")
        hidden = await http.get("/oauth/../v1/audit", headers={"x-api-key": ""})
        assert hidden.status_code in (401, 404)


async def test_a_session_takes_vaults_that_exist_and_are_not_archived(tmp_path: Path) -> None:
    async with house(tmp_path) as galley:
        vaults = galley.client.beta.vaults
        good, old = await vaults.create(display_name="good"), await vaults.create(display_name="old")
        await vaults.archive(old.id)
        session = await galley.session(tools=[TOOLSET], vault_ids=[good.id])
        assert (await galley.client.beta.sessions.retrieve(session.id)).vault_ids == [good.id]
        with pytest.raises(anthropic.NotFoundError, match=r"vault_ids\.1: Vault vlt_nothing was not found"):
            await galley.session(tools=[TOOLSET], vault_ids=[good.id, "vlt_nothing"])
        with pytest.raises(anthropic.NotFoundError, match=r"vault_ids\.0"):
            await galley.session(tools=[TOOLSET], vault_ids=["../../grants"])
        with pytest.raises(anthropic.BadRequestError, match=r"vault_ids\.0: .* is archived"):
            await galley.session(tools=[TOOLSET], vault_ids=[old.id])


async def test_without_a_vault_proxy_there_are_no_vaults(tmp_path: Path) -> None:
    async with house(tmp_path, environ={"GALLEY_BROKER": "off"}) as galley:
        with pytest.raises(anthropic.NotFoundError, match="GALLEY_BROKER=off"):
            await galley.client.beta.vaults.create(display_name="Alice")
        with pytest.raises(anthropic.BadRequestError, match="GALLEY_BROKER=off"):
            await galley.session(tools=[TOOLSET], vault_ids=["vlt_1"])


async def test_the_same_paths_are_on_the_proxy_itself(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, galley.proxy() as proxy:
        vault = await galley.client.beta.vaults.create(display_name="Alice")
        async with galley.http() as http:
            ours, its = await http.get(f"/v1/vaults/{vault.id}"), await proxy.get(f"/v1/vaults/{vault.id}")
        assert ours.content == its.content
