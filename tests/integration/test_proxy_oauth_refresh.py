"""New access tokens: in time, once for all who ask, and never at the price of what is stored."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from galley_vault_proxy.credentials.port import Injection
from galley_vault_proxy.credentials.shapes import CredentialUpdate
from galley_vault_proxy.errors import SecretMissing
from galley_vault_proxy.secret import Secret
from starlette.responses import JSONResponse, Response

from tests.integration.proxy_credentials_kit import Broker, broker, everything_below
from tests.integration.proxy_oauth_server import Client, Rules, Servers, servers

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path / "home") as opened:
        yield opened


class Case:
    """A credential at a server, whose token is about to end."""

    def __init__(self, proxy: Broker, found: Servers, vault_id: str, credential_id: str) -> None:
        self.proxy = proxy
        self.found = found
        self.vault_id = vault_id
        self.credential_id = credential_id

    async def ask(self, *, fresh: bool = False) -> Injection:
        session = await self.proxy.session(self.vault_id)
        found = await self.proxy.source.for_mcp(session, [self.vault_id], self.found.mcp.url, fresh=fresh)
        assert found is not None
        return found

    async def stored(self) -> Mapping[str, str]:
        ref = (await self.proxy.part.credentials.usable(self.vault_id, self.credential_id)).ref
        return {name: value.reveal() for name, value in (await self.proxy.store.read_own(ref)).fields.items()}

    async def update(self, **auth: Any) -> None:
        asked = CredentialUpdate.model_validate_json(json.dumps({"auth": {"type": "mcp_oauth", **auth}}))
        await self.proxy.part.credentials.update(self.vault_id, self.credential_id, asked)


async def case(
    proxy: Broker, found: Servers, *, ends_in: float | None = 1, method: str = "none", refresh: bool = True
) -> Case:
    secret = None if method == "none" else "cs: +planted/&"
    found.auth.add(Client("client-1", [], method, secret), access="at-old", refresh="rt-old")
    auth: dict[str, Any] = {"type": "mcp_oauth", "mcp_server_url": found.mcp.url, "access_token": "at-old"}
    if ends_in is not None:
        auth["expires_at"] = (datetime.now(UTC) + timedelta(seconds=ends_in)).isoformat()
    if refresh:
        auth["refresh"] = {
            "client_id": "client-1",
            "refresh_token": "rt-old",
            "token_endpoint": f"{found.auth.base}/token",
            "token_endpoint_auth": {"type": method} | ({"client_secret": secret} if secret else {}),
            "resource": found.mcp.url,
            "scope": "read",
        }
    async with proxy.sdk() as sdk:
        vault_id = (await sdk.beta.vaults.create(display_name="Alice")).id
        made: Any = await sdk.beta.vaults.credentials.create(vault_id, auth=auth)  # type: ignore[arg-type]
    # A token that ends in a second is due in three quarters of one.
    proxy.clock.ahead = timedelta(seconds=2) if ends_in is not None else timedelta()
    return Case(proxy, found, vault_id, made.id)


@pytest.mark.parametrize("method", ["none", "client_secret_basic", "client_secret_post"])
async def test_a_token_that_ends_is_renewed_before_it_is_used(proxy: Broker, method: str) -> None:
    async with servers() as found:
        at = await case(proxy, found, method=method)
        injection = await at.ask()
        assert found.auth.is_good(injection.value.reveal().removeprefix("Bearer "))
        request = found.auth.token_requests[0]
        assert (request["grant_type"], request["resource"], request["scope"]) == (
            "refresh_token",
            found.mcp.url,
            "read",
        )
        assert {"at-old", "rt-old"}.isdisjoint(secret.reveal() for secret in injection.secrets)
        shown = (await proxy.part.credentials.retrieve(at.vault_id, at.credential_id)).auth
        assert shown.type == "mcp_oauth"
        assert shown.expires_at is not None
        assert timedelta(minutes=59) < shown.expires_at - proxy.clock() < timedelta(minutes=61)


async def test_a_token_that_lasts_is_left_alone(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found, ends_in=3600)
        assert (await at.ask()).value.reveal() == "Bearer at-old"
        proxy.clock.ahead = timedelta(seconds=3600 - 55)
        assert (await at.ask()).value.reveal() != "Bearer at-old"
        assert len(found.auth.token_requests) == 1


async def test_one_request_serves_all_who_wait(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        found.auth.hold = asyncio.Event()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(at.ask()) for _ in range(20)]
            await found.auth.arrived.wait()
            found.auth.hold.set()
        assert len({task.result().value.reveal() for task in asking}) == 1
        assert len(found.auth.token_requests) == 1


async def test_twenty_refreshes_of_several_processes_are_one_token_request(proxy: Broker) -> None:
    async with servers() as found, asyncio.timeout(60):
        at = await case(proxy, found)
        found.auth.hold = asyncio.Event()
        program = [sys.executable, "-m", "tests.integration.proxy_refresh_program"]
        processes = [
            await asyncio.create_subprocess_exec(
                *(*program, str(proxy.home), at.vault_id, found.mcp.url, "5"), stdout=asyncio.subprocess.PIPE
            )
            for _ in range(4)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"asking\n"
            await found.auth.arrived.wait()
            found.auth.hold.set()
            outputs = [(await process.communicate())[0].decode().split("\n")[:-1] for process in processes]
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        given = [line for output in outputs for line in output]
        assert len(given) == 20
        assert len(set(given)) == 1
        assert found.auth.is_good(given[0].removeprefix("Bearer "))
        assert (len(found.auth.token_requests), found.auth.reused) == (1, 0)
        # And this process, which was not asked, uses it too.
        assert (await at.ask()).value.reveal() == given[0]
        assert len(found.auth.token_requests) == 1


async def test_a_client_that_goes_away_does_not_cut_a_refresh_off(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        found.auth.hold = asyncio.Event()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(at.ask())
            await found.auth.arrived.wait()
            asking.cancel()
            found.auth.hold.set()
        assert (await at.ask()).value.reveal() != "Bearer at-old"
        assert (len(found.auth.token_requests), found.auth.reused) == (1, 0)


async def test_a_refresh_token_that_does_not_come_again_stays(proxy: Broker) -> None:
    async with servers(Rules(rotates=False)) as found:
        at = await case(proxy, found)
        await at.ask()
        assert (await at.stored())["refresh_token"] == "rt-old"
        proxy.clock.ahead = timedelta(hours=2)
        await at.ask()
        assert len(found.auth.token_requests) == 2


FAULTS: list[tuple[Response, str]] = [
    (JSONResponse({"error": "invalid_grant"}, 400), "permanent"),
    (JSONResponse({"error": "bad_refresh_token"}, 200), "permanent"),
    (JSONResponse({"access_token": "x", "token_type": "DPoP"}, 200), "permanent"),
    (JSONResponse({"access_token": "a b\r\nc: d"}, 200), "permanent"),
    (Response(b"\xff" * 100, 200), "permanent"),
    (Response(b'{"access_token":' + b"[" * 100_000, 200), "permanent"),
    (Response(b" " * 300_000 + b'{"access_token":"x"}', 200), "permanent"),
    (JSONResponse({}, 302, headers={"location": "http://127.0.0.1:1/"}), "permanent"),
    (JSONResponse({"error": "slow_down"}, 429, headers={"retry-after": "60"}), "passing"),
    (JSONResponse({}, 503), "passing"),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=[str(n) for n in range(len(FAULTS))])
async def test_a_failure_overwrites_nothing_and_is_not_tried_on_and_on(
    proxy: Broker, fault: Response, kind: str
) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        before = await at.stored()
        found.auth.faults.append(fault)
        assert (await at.ask()).value.reveal() == "Bearer at-old"
        assert (await at.ask()).value.reveal() == "Bearer at-old"
        assert await at.stored() == before
        assert len(found.auth.token_requests) == 1
        proxy.clock.ahead += timedelta(seconds=70 if kind == "passing" else 301)
        assert (await at.ask()).value.reveal() != "Bearer at-old"


async def test_new_tokens_end_the_waiting_after_a_failure(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        found.auth.faults.append(JSONResponse({"error": "invalid_grant"}, 400))
        await at.ask()
        await at.update(refresh={"refresh_token": "rt-old"})
        assert (await at.ask()).value.reveal() != "Bearer at-old"


async def test_an_endpoint_that_is_not_there_or_not_safe_changes_nothing(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        for place in ("http://127.0.0.1:1/token", "https://10.0.0.1/token", "http://example.com/token"):
            stored = await proxy.part.credentials.usable(at.vault_id, at.credential_id)
            auth = stored.shown.auth
            assert auth.type == "mcp_oauth"
            assert auth.refresh is not None
            moved = auth.model_copy(update={"refresh": auth.refresh.model_copy(update={"token_endpoint": place})})
            fields = {name: Secret(value) for name, value in (await at.stored()).items()}
            await proxy.part.credentials.replace(stored, moved, fields)
            assert (await at.ask()).value.reveal() == "Bearer at-old"
        assert found.auth.token_requests == []


async def test_a_refused_token_is_renewed_and_not_twice_in_a_row(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found, ends_in=None)
        before = await at.ask()
        assert await proxy.source.refresh(at.credential_id, before.version) is True
        after = await at.ask(fresh=True)
        assert after.version > before.version
        # Late news of the old version: there is a newer one already.
        assert await proxy.source.refresh(at.credential_id, before.version) is True
        # The new one is refused too: another would be as well.
        assert await proxy.source.refresh(at.credential_id, after.version) is False
        assert len(found.auth.token_requests) == 1


async def test_without_a_refresh_token_there_is_nothing_to_get_one_with(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found, refresh=False)
        assert (await at.ask()).value.reveal() == "Bearer at-old"
        assert await proxy.source.refresh(at.credential_id, 1) is False
        assert await proxy.source.refresh("vcrd_none", 1) is False


async def test_who_writes_during_a_refresh_has_the_last_word(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        found.auth.hold = asyncio.Event()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(at.ask())
            await found.auth.arrived.wait()
            await at.update(access_token="at-mine", expires_at=(datetime.now(UTC) + timedelta(hours=9)).isoformat())
            found.auth.hold.set()
        assert asking.result().value.reveal() == "Bearer at-mine"
        stored = await at.stored()
        # But the refresh token that was spent on the way is replaced by its successor.
        assert stored["access_token"] == "at-mine"
        assert stored["refresh_token"] == found.auth.grants[0].refresh


async def test_archiving_during_a_refresh_leaves_nothing_behind(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        session = await proxy.session(at.vault_id)
        found.auth.hold = asyncio.Event()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(proxy.source.for_mcp(session, [at.vault_id], found.mcp.url))
            await found.auth.arrived.wait()
            await proxy.part.credentials.archive(at.vault_id, at.credential_id)
            found.auth.hold.set()
            with contextlib.suppress(Exception):
                await asking
        granted = found.auth.grants[0]
        await proxy.audit.flush()
        everything = everything_below(proxy.home)
        for planted in (*granted.access, granted.refresh or "", "rt-old"):
            assert planted.encode() not in everything


VALIDATIONS: list[tuple[Rules, str, dict[str, Any], str, str | None, str | None]] = [
    (Rules(), "good", {}, "valid", None, None),
    (Rules(events=True), "good", {}, "valid", None, None),
    (Rules(era="legacy", events=True), "good", {}, "valid", None, None),
    (Rules(era="legacy", gate="tools"), "good", {}, "valid", None, None),
    (Rules(), "ended", {}, "valid", None, "succeeded"),
    (Rules(era="legacy", gate="tools"), "ended", {}, "valid", None, "succeeded"),
    (Rules(), "ended", {"refresh": False}, "invalid", "server/discover", "no_refresh_token"),
    (Rules(era="legacy", gate="tools"), "revoked", {}, "invalid", "tools/list", "failed"),
    (Rules(era="legacy"), "revoked", {}, "invalid", "server/discover", "failed"),
    (Rules(), "busy", {}, "unknown", "server/discover", "failed"),
]


@pytest.mark.parametrize(
    ("rules", "state", "more", "status", "method", "refresh"),
    VALIDATIONS,
    ids=[str(n) for n in range(len(VALIDATIONS))],
)
async def test_validation_tells_what_a_server_thinks_of_a_credential(
    proxy: Broker, rules: Rules, state: str, more: dict[str, Any], status: str, method: str | None, refresh: str | None
) -> None:
    async with servers(rules) as found, proxy.sdk() as sdk:
        at = await case(proxy, found, ends_in=None, **more)
        if state != "good":
            found.auth.revoke_access()
        if state == "revoked":
            found.auth.grants[0].refresh = "another"
        if state == "busy":
            found.auth.faults.append(JSONResponse({"error": "temporarily_unavailable"}, 503))
        told = await sdk.beta.vaults.credentials.mcp_oauth_validate(at.credential_id, vault_id=at.vault_id)
        assert (told.status, told.has_refresh_token) == (status, more.get("refresh", True))
        assert (told.mcp_probe and told.mcp_probe.method) == method
        assert (told.refresh and told.refresh.status) == refresh
        shown = told.to_json()
        assert "at-old" not in shown
        assert "rt-old" not in shown
        if method is not None:
            assert told.mcp_probe is not None
            assert told.mcp_probe.http_response is not None
            assert told.mcp_probe.http_response.status_code == 401
            assert "[redacted]" in told.mcp_probe.http_response.body
        if rules.era == "legacy" and status == "valid":
            assert found.mcp.ended >= 1


async def test_validation_of_a_server_that_is_ill_says_unknown(proxy: Broker) -> None:
    async with servers() as found, proxy.sdk() as sdk:
        at = await case(proxy, found, ends_in=None)
        found.mcp.fault = Response(b"x" * 10_000 + b" at-old", 502, media_type="text/plain")
        told = await sdk.beta.vaults.credentials.mcp_oauth_validate(at.credential_id, vault_id=at.vault_id)
        assert told.status == "unknown"
        assert told.mcp_probe is not None
        assert told.mcp_probe.http_response is not None
        assert (told.mcp_probe.http_response.body_truncated, told.refresh) == (True, None)
    async with proxy.sdk() as sdk:
        told = await sdk.beta.vaults.credentials.mcp_oauth_validate(at.credential_id, vault_id=at.vault_id)
        assert told.status == "unknown"
        assert told.mcp_probe is not None
        assert told.mcp_probe.http_response is None


async def test_every_refresh_is_audited_without_a_token(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found)
        await at.ask()
        proxy.clock.ahead = timedelta(hours=2)
        found.auth.faults.append(JSONResponse({"error": "invalid_grant", "echo": "rt-planted"}, 400))
        await at.ask()
        await proxy.audit.flush()
        lines = everything_below(proxy.home / "audit").decode()
        assert '"action":"credential.refresh","decision":"allow"' in lines.replace(", ", ",").replace(": ", ":")
        assert "invalid_grant" in lines
        assert "planted" not in lines


async def test_while_the_old_token_is_good_nobody_waits_long_for_a_new_one(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found, ends_in=90)
        proxy.clock.ahead = timedelta(seconds=75)
        found.auth.hold = asyncio.Event()
        async with asyncio.timeout(5):
            assert (await at.ask()).value.reveal() == "Bearer at-old"
        found.auth.hold.set()
        assert (await at.ask()).value.reveal() != "Bearer at-old"
        assert len(found.auth.token_requests) == 1


async def test_a_token_that_has_ended_for_good_costs_no_writes(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found, refresh=False)
        version = await proxy.state.version()
        for _ in range(3):
            assert (await at.ask()).value.reveal() == "Bearer at-old"
        assert await proxy.state.version() == version


async def test_a_secret_written_by_hand_is_trimmed_and_redacted_as_it_was(proxy: Broker) -> None:
    async with servers() as found:
        at = await case(proxy, found, ends_in=None)
        ref = (await proxy.part.credentials.usable(at.vault_id, at.credential_id)).ref
        await proxy.store.write(ref, {"access_token": Secret("at-by-hand\n")}, expected=None)
        injection = await at.ask(fresh=True)
        assert injection.value.reveal() == "Bearer at-by-hand"
        assert {secret.reveal() for secret in injection.secrets} == {"at-by-hand", "at-by-hand\n"}
        await proxy.store.write(ref, {"access_token": Secret("two\nlines")}, expected=None)
        with pytest.raises(SecretMissing, match="no token that a header can carry"):
            await at.ask(fresh=True)
