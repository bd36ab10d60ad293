"""Logging in to MCP servers: from a URL that a person opens to a credential in the vault."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from galley_vault_proxy.oauth.login import LoginFailed, login, only_vault
from galley_vault_proxy.secret import Secret
from starlette.responses import JSONResponse

from tests.integration.proxy_credentials_kit import KEY, Broker, broker, everything_below
from tests.integration.proxy_kit import clean_environment
from tests.integration.proxy_kit import proxy as running_proxy
from tests.integration.proxy_oauth_server import Client, Rules, servers

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path / "home") as opened:
        yield opened


async def a_vault(proxy: Broker) -> str:
    async with proxy.sdk() as sdk:
        return (await sdk.beta.vaults.create(display_name="Alice")).id


async def begin(proxy: Broker, vault_id: str, url: str, **more: Any) -> dict[str, Any]:
    async with proxy.http() as client:
        answer = await client.post("/v1/oauth/logins", json={"vault_id": vault_id, "mcp_server_url": url, **more})
    found: dict[str, Any] = {"status_code": answer.status_code, **answer.json()}
    return found


async def look(proxy: Broker, login_id: str) -> dict[str, Any]:
    async with proxy.http() as client:
        found: dict[str, Any] = (await client.get(f"/v1/oauth/logins/{login_id}")).json()
    return found


async def token_of(proxy: Broker, vault_id: str, url: str) -> str:
    injection = await proxy.source.for_mcp(await proxy.session(vault_id), [vault_id], url)
    assert injection is not None
    assert injection.header == "authorization"
    return injection.value.reveal()


@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        Rules(issuer_path="/tenant/7", scope="read"),
        Rules(issuer_path="/tenant/7", metadata="openid", methods=("client_secret_basic",)),
        Rules(issuer_path="/tenant/7", metadata="openid-appended", methods=("client_secret_post",)),
        Rules(metadata="openid", iss=None, form_answers=True, expires_in=None),
        Rules(era="legacy", gate="tools"),
    ],
    ids=["plain", "path", "openid-basic", "openid-post", "old-and-form", "legacy"],
)
async def test_a_login_ends_in_a_credential_that_lets_a_session_in(proxy: Broker, rules: Rules) -> None:
    async with servers(rules) as found:
        vault_id = await a_vault(proxy)
        begun = await begin(proxy, vault_id, found.mcp.url, display_name="Tracker")
        assert (begun["status"], begun["issuer"]) == ("pending", found.auth.issuer)
        page = await found.consent(begun["url"])
        assert page.status_code == 200, page.text
        done = await look(proxy, begun["id"])
        assert (done["status"], done["url"], done["error"]) == ("completed", None, None)
        async with proxy.sdk() as sdk:
            shown = await sdk.beta.vaults.credentials.retrieve(done["credential_id"], vault_id=vault_id)
            assert (shown.display_name, shown.auth.type) == ("Tracker", "mcp_oauth")
            validated = await sdk.beta.vaults.credentials.mcp_oauth_validate(shown.id, vault_id=vault_id)
        assert (validated.status, validated.mcp_probe, validated.refresh) == ("valid", None, None)
        assert found.auth.is_good((await token_of(proxy, vault_id, found.mcp.url)).removeprefix("Bearer "))


async def test_the_scope_is_what_the_server_demands_and_a_refresh_token_is_asked_for(proxy: Broker) -> None:
    async with servers(Rules(scope="read write")) as found:
        begun = await begin(proxy, await a_vault(proxy), found.mcp.url)
        await found.consent(begun["url"])
        assert found.auth.asked[0]["scope"] == "read write offline_access"
        assert found.auth.asked[0]["prompt"] == "consent"
        assert found.auth.registrations[0]["application_type"] == "native"


async def test_a_client_that_is_registered_already_is_used(proxy: Broker) -> None:
    async with servers(Rules(registers=False)) as found:
        vault_id = await a_vault(proxy)
        refused = await begin(proxy, vault_id, found.mcp.url)
        assert refused["status_code"] == 400
        assert f"{proxy.url}/oauth/callback" in refused["error"]["message"]
        client = Client("mine", [f"{proxy.url}/oauth/callback"], "client_secret_basic", "cs: planted&")
        found.auth.clients["mine"] = client
        begun = await begin(proxy, vault_id, found.mcp.url, client_id="mine", client_secret="cs: planted&")
        assert (await found.consent(begun["url"])).status_code == 200


async def test_where_it_is_taken_the_client_is_its_own_document(tmp_path: Path, proxy: Broker) -> None:
    # Only a public https address can be read by the authorization server; on loopback the proxy registers instead.
    async with servers(Rules(documents=True)) as found:
        await begin(proxy, await a_vault(proxy), found.mcp.url)
        assert len(found.auth.registrations) == 1
    async with httpx2.AsyncClient(trust_env=False) as anybody:
        document = (await anybody.get(f"{proxy.url}/oauth/client.json")).json()
    assert document["client_id"] == f"{proxy.url}/oauth/client.json"
    assert document["redirect_uris"] == [f"{proxy.url}/oauth/callback"]


async def test_a_second_login_renews_the_credential_in_place(proxy: Broker) -> None:
    async with servers() as found:
        vault_id = await a_vault(proxy)
        ids, tokens = [], []
        for _ in range(2):
            begun = await begin(proxy, vault_id, found.mcp.url)
            await found.consent(begun["url"])
            ids.append((await look(proxy, begun["id"]))["credential_id"])
            tokens.append(await token_of(proxy, vault_id, found.mcp.url))
        assert ids[0] == ids[1]
        assert tokens[0] != tokens[1]


async def test_a_static_token_is_not_replaced_by_a_login(proxy: Broker) -> None:
    async with servers() as found, proxy.sdk() as sdk:
        vault_id = await a_vault(proxy)
        await sdk.beta.vaults.credentials.create(
            vault_id, auth={"type": "static_bearer", "mcp_server_url": found.mcp.url, "token": "t"}
        )
        refused = await begin(proxy, vault_id, found.mcp.url)
        assert (refused["status_code"], refused["error"]["type"]) == (409, "conflict_error")


async def test_a_state_is_good_for_one_try(proxy: Broker) -> None:
    async with servers() as found:
        begun = await begin(proxy, await a_vault(proxy), found.mcp.url)
        back = await found.sent_to(begun["url"])
        async with httpx2.AsyncClient(trust_env=False) as browser:
            tries = await asyncio.gather(*(browser.get(back) for _ in range(5)))
        assert sorted(page.status_code for page in tries) == [200, 400, 400, 400, 400]
        assert len(found.auth.token_requests) == 1


async def test_a_state_that_is_not_ours_or_has_expired_opens_nothing(proxy: Broker) -> None:
    async with servers() as found:
        begun = await begin(proxy, await a_vault(proxy), found.mcp.url)
        back = await found.sent_to(begun["url"])
        async with httpx2.AsyncClient(trust_env=False) as browser:
            other = await browser.get(f"{proxy.url}/oauth/callback?code=x&state=nonsense")
            proxy.clock.ahead = timedelta(minutes=11)
            late = await browser.get(back)
        assert (other.status_code, late.status_code) == (400, 400)
        assert found.auth.token_requests == []
        assert (await look(proxy, begun["id"]))["status"] == "expired"


@pytest.mark.parametrize(("iss", "word"), [("wrong", "iss_mismatch"), ("missing", "iss_missing")])
async def test_an_answer_of_another_issuer_is_refused(proxy: Broker, iss: str, word: str) -> None:
    async with servers(Rules(iss=iss)) as found:
        begun = await begin(proxy, await a_vault(proxy), found.mcp.url)
        assert (await found.consent(begun["url"])).status_code == 400
        assert (await look(proxy, begun["id"]))["error"] == word
        assert found.auth.token_requests == []


async def test_a_refusal_is_told_without_what_the_server_says(proxy: Broker) -> None:
    async with servers(Rules(consent="deny")) as found:
        begun = await begin(proxy, await a_vault(proxy), found.mcp.url)
        page = await found.consent(begun["url"])
        assert page.status_code == 400
        assert "access_denied" in page.text
        assert "script" not in page.text
        assert (await look(proxy, begun["id"]))["status"] == "failed"


async def test_the_page_gives_nothing_away_and_sends_nowhere(proxy: Broker) -> None:
    async with servers() as found:
        begun = await begin(proxy, await a_vault(proxy), found.mcp.url)
        back = await found.sent_to(begun["url"])
        async with httpx2.AsyncClient(trust_env=False) as browser:
            page = await browser.get(back + "&redirect=https://evil.example&session_state=x")
            twice = await browser.get(back + "&state=again")
        assert page.status_code == 200
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "location" not in page.headers
        assert "code-planted" not in page.text
        assert twice.status_code == 400


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Rules(challenge_methods=None), "PKCE"),
        (Rules(challenge_methods=("plain",)), "PKCE"),
        (Rules(resource="https://other.example/mcp"), "another resource"),
        (Rules(issuer_path="/x", metadata="oauth", advertises=False), "publishes no authorization server metadata"),
        (Rules(methods=("private_key_jwt",)), "takes none of"),
    ],
    ids=["no-pkce", "plain-pkce", "other-resource", "no-metadata", "no-method"],
)
async def test_a_server_that_cannot_be_used_safely_is_refused_with_the_reason(
    proxy: Broker, rules: Rules, reason: str
) -> None:
    async with servers(rules) as found:
        refused = await begin(proxy, await a_vault(proxy), found.mcp.url)
        assert refused["status_code"] in (400, 502)
        assert reason in refused["error"]["message"]


async def test_metadata_of_another_issuer_is_refused(proxy: Broker) -> None:
    async with servers() as found:
        found.auth.rules = Rules(issuer_path="/elsewhere")
        refused = await begin(proxy, await a_vault(proxy), found.mcp.url)
        assert refused["status_code"] == 400


async def test_private_addresses_are_not_asked(proxy: Broker) -> None:
    for url in ("https://10.0.0.1/mcp", "https://169.254.169.254/latest", "https://[::1]/mcp"):
        refused = await begin(proxy, await a_vault(proxy), url)
        assert (refused["status_code"], refused["error"]["type"]) == (403, "permission_error")


async def test_a_server_cannot_send_the_proxy_to_where_it_may_not_go(proxy: Broker) -> None:
    async with servers() as found:
        vault_id = await a_vault(proxy)
        for place, status in (
            ("http://192.168.0.1/x", 400),
            ("https://192.168.0.1/x", 403),
            ("file:///etc/passwd", 400),
        ):
            found.mcp.fault = JSONResponse({}, 401, headers={"www-authenticate": f'Bearer resource_metadata="{place}"'})
            assert (await begin(proxy, vault_id, found.mcp.url))["status_code"] == status


async def test_who_cannot_reach_the_callback_brings_the_address(proxy: Broker) -> None:
    async with servers() as found, proxy.http() as client:
        vault_id = await a_vault(proxy)
        begun, other = [await begin(proxy, vault_id, found.mcp.url) for _ in range(2)]
        back = await found.sent_to(begun["url"])
        wrong = await client.post(f"/v1/oauth/logins/{other['id']}/redirect", json={"url": back})
        assert wrong.status_code == 400
        done = await client.post(f"/v1/oauth/logins/{begun['id']}/redirect", json={"url": back})
        assert done.json()["status"] == "completed"


async def test_a_login_in_the_terminal_prints_the_url_and_waits(proxy: Broker) -> None:
    async with servers() as found:
        vault_id = await a_vault(proxy)
        opened: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def say(url: str) -> None:
            loop.call_soon_threadsafe(opened.put_nowait, url)

        def run() -> str:
            return login(
                found.mcp.url,
                vault_id=only_vault(proxy.url, Secret(KEY)),
                proxy_url=proxy.url,
                key=Secret(KEY),
                say=say,
            )

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(asyncio.to_thread(run))
            await found.consent(await opened.get())
        assert waiting.result().startswith("vcrd_")
        assert await token_of(proxy, vault_id, found.mcp.url)


async def test_a_login_in_the_terminal_says_why_it_failed(proxy: Broker) -> None:
    async with servers(Rules(challenge_methods=None)) as found:
        vault_id = await a_vault(proxy)

        def run() -> str:
            return login(found.mcp.url, vault_id=vault_id, proxy_url=proxy.url, key=Secret(KEY), say=lambda url: None)

        with pytest.raises(LoginFailed, match="PKCE"):
            await asyncio.to_thread(run)


async def test_nothing_of_a_login_stays_readable(proxy: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="galley_vault_proxy")
    async with servers(Rules(methods=("client_secret_post",))) as found:
        vault_id = await a_vault(proxy)
        begun = await begin(proxy, vault_id, found.mcp.url)
        state = httpx2.URL(begun["url"]).params["state"]
        during = everything_below(proxy.home)
        await found.consent(begun["url"])
        await proxy.audit.flush()
        grant = found.auth.grants[0]
        secret = next(iter(found.auth.clients.values())).secret
        verifier = found.auth.token_requests[0]["code_verifier"]
        after = everything_below(proxy.home) + during + caplog.text.encode()
        for planted in (*grant.access, grant.refresh, secret, state, verifier, found.auth.token_requests[0]["code"]):
            assert planted is not None
            assert planted.encode() not in after


async def test_an_exchange_that_fails_leaves_no_credential(proxy: Broker) -> None:
    async with servers() as found, proxy.sdk() as sdk:
        vault_id = await a_vault(proxy)
        begun = await begin(proxy, vault_id, found.mcp.url)
        found.auth.faults.append(JSONResponse({"error": "server_error", "access_token": "at-planted"}, 500))
        page = await found.consent(begun["url"])
        assert page.status_code == 400
        assert (await look(proxy, begun["id"]))["error"] == "server_error"
        assert (await sdk.beta.vaults.credentials.list(vault_id)).data == []


async def test_the_command_logs_in_at_a_running_proxy(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environ = {**clean_environment(), "GALLEY_PROXY_KEY": KEY, "GALLEY_PROXY_HOME": str(home)}
    async with servers() as found, running_proxy(home, environ={"GALLEY_PROXY_ALLOW_NETS": "127.0.0.0/8"}) as proxy:
        async with proxy.client() as client:
            vault_id = (await client.post("/v1/vaults", json={"display_name": "Alice"})).json()["id"]
            words = ("-m", "galley_vault_proxy", "login", found.mcp.url, "--proxy", proxy.url, "--name", "Tracker")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *words), env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            try:
                assert process.stderr is not None
                async with asyncio.timeout(30):
                    url = ""
                    while not url.startswith("http"):
                        url = (await process.stderr.readline()).decode().strip()
                    assert (await found.consent(url)).status_code == 200
                    out, _ = await process.communicate()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            shown = (await client.get(f"/v1/vaults/{vault_id}/credentials/{out.decode().strip()}")).json()
        assert (process.returncode, shown["display_name"], shown["auth"]["mcp_server_url"]) == (
            0,
            "Tracker",
            found.mcp.url,
        )
