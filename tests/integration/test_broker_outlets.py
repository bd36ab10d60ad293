"""The way out of a session's sandbox: what programs in it reach, with which credentials, and for how long."""

import asyncio
import json
import os
import shlex
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from galley_server.demo.reply import call, say

from tests.integration.broker_kit import (
    ALLOW,
    ASK,
    TOOLSET,
    House,
    audit_lines,
    house,
    mcp_toolset,
    of_type,
    proxy_of,
    text_of,
    until,
)
from tests.integration.mcp_door_upstream import scripted
from tests.integration.proxy_tls import Authority

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

HOST = "127.0.0.2"
"""A host that is no sandbox's own loopback address, and whose connections so go through the proxy."""

LIST = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})


@asynccontextmanager
async def web(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Says over HTTP what it was sent. Returns its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(head), head))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def run(galley: House, session_id: str, command: str) -> str:
    events = await galley.turn(session_id, "go", call("bash", command=command), say("done"))
    return text_of(of_type(events, "agent.tool_result")[0])


def curl(url: str, *words: str) -> str:
    return shlex.join(["curl", "-sS", "-m", "10", *words, url])


async def test_a_public_host_is_reached_and_nothing_else_of_this_machine_is(tmp_path: Path) -> None:
    async with web() as port, house(tmp_path) as galley:
        session = await galley.session(tools=[TOOLSET])
        said = await run(galley, session.id, curl(f"http://{HOST}:{port}/here"))
        assert said.startswith("GET /here HTTP/1.1")
        assert "galley1" not in said
        # Past the proxy there is nothing.
        assert "7" in await run(galley, session.id, f"{curl(f'http://{HOST}:{port}/', '--noproxy', '*')}; echo $?")


async def test_a_private_address_is_refused_unless_the_operator_opened_it(tmp_path: Path) -> None:
    async with web() as port, house(tmp_path, environ={"GALLEY_PROXY_ALLOW_NETS": ""}) as galley:
        session = await galley.session(tools=[TOOLSET])
        said = await run(galley, session.id, curl(f"http://{HOST}:{port}/here"))
        assert "GET /here" not in said
        assert any(line.get("reason") == "address_refused" for line in audit_lines(galley.home))


async def test_a_limited_environment_lets_programs_reach_its_hosts_only(tmp_path: Path) -> None:
    async with web() as port, house(tmp_path) as galley:
        limited = {"type": "limited", "allowed_hosts": ["only.example.com"]}
        session = await galley.session(tools=[TOOLSET], networking=limited)
        assert "does not include the host" in await run(galley, session.id, curl(f"http://{HOST}:{port}/"))
        refused = [line for line in audit_lines(galley.home) if line["decision"] == "deny"]
        (line,) = [line for line in refused if line.get("host") == f"{HOST}:{port}"]
        assert (line["session_id"], line["reason"]) == (session.id, "host_not_granted")
        system = json.dumps(galley.script.bodies[0]["system"])
        assert "only.example.com" in system


async def test_a_credential_is_a_placeholder_in_the_sandbox_and_itself_at_its_host(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    environ = {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
    async with web(tls=authority.serving(HOST)) as port, house(tmp_path, environ=environ) as galley:
        vaults = galley.client.beta.vaults
        vault = await vaults.create(display_name="Alice")
        limited = {"type": "limited", "allowed_hosts": [HOST]}
        auth: Any = {
            "type": "environment_variable",
            "secret_name": "API_TOKEN",
            "secret_value": "the-real-value-1234",
            "networking": limited,
        }
        await vaults.credentials.create(vault.id, auth=auth)
        session = await galley.session(tools=[TOOLSET], vault_ids=[vault.id])
        before = await run(galley, session.id, "printenv API_TOKEN")
        assert before.strip() not in ("", "the-real-value-1234")
        url = f"https://{HOST}:{port}/"
        said = await run(galley, session.id, f'curl -sS -m 10 -H "x-token: $API_TOKEN" {url}')
        # The host got the real one, and what came back had it taken out again.
        assert "the-real-value-1234" not in said
        assert "x-token: " in said
        assert before.strip() not in said
        used = [line for line in audit_lines(galley.home) if line["action"] == "credential.use"]
        assert [line["host"] for line in used] == [f"{HOST}:{port}"]
        assert "placeholders" in json.dumps(galley.script.bodies[0]["system"])


async def test_a_credential_that_is_added_later_gets_its_variable_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galley_server.broker.outlets.LOOK_S", 0.2)
    async with house(tmp_path) as galley:
        vault = await galley.client.beta.vaults.create(display_name="Alice")
        session = await galley.session(tools=[TOOLSET], vault_ids=[vault.id])
        assert "none" in await run(galley, session.id, 'echo "${LATER:-none}"')
        auth: Any = {
            "type": "environment_variable",
            "secret_name": "LATER",
            "secret_value": "later-value-000",
            "networking": {"type": "unrestricted"},
        }
        credential = await galley.client.beta.vaults.credentials.create(vault.id, auth=auth)
        await until(lambda: said_otherwise(galley, session.id, "none"))
        await galley.client.beta.vaults.credentials.archive(credential.id, vault_id=vault.id)
        await until(lambda: said(galley, session.id, "none"))


async def said(galley: House, session_id: str, text: str) -> bool:
    return text in await run(galley, session_id, 'echo "${LATER:-none}"')


async def said_otherwise(galley: House, session_id: str, text: str) -> bool:
    return not await said(galley, session_id, text)


async def test_a_credential_for_a_host_that_the_environment_shuts_off_is_told_of(tmp_path: Path) -> None:
    async with house(tmp_path) as galley:
        vault = await galley.client.beta.vaults.create(display_name="Alice")
        auth: Any = {
            "type": "environment_variable",
            "secret_name": "TOKEN",
            "secret_value": "some-value-0000",
            "networking": {"type": "limited", "allowed_hosts": ["api.example.com"]},
        }
        credential = await galley.client.beta.vaults.credentials.create(vault.id, auth=auth)
        session = await galley.session(
            tools=[TOOLSET],
            networking={"type": "limited", "allowed_hosts": ["www.example.com"]},
            vault_ids=[vault.id],
        )
        events = await galley.turn(session.id, "go", say("done"))
        (error,) = of_type(events, "session.error")
        assert error.error.type == "credential_host_unreachable_error"
        assert (error.error.vault_id, error.error.credential_id) == (vault.id, credential.id)
        assert "api.example.com" in error.error.message


async def test_programs_reach_the_tools_that_nobody_is_asked_about_and_no_others(tmp_path: Path) -> None:
    async with scripted() as upstream, scripted() as hidden, house(tmp_path) as galley:
        session = await galley.session(
            tools=[TOOLSET, mcp_toolset("up", default=ALLOW, delete_all=ASK), mcp_toolset("hid")],
            servers={"up": upstream.url, "hid": hidden.url},
        )
        to = "-H 'content-type: application/json' -H 'accept: application/json, text/event-stream'"
        door = f'curl -sS -m 10 -X POST {to} -H "authorization: Bearer $(cat $GALLEY_TOKEN_FILE)"'
        listed = await run(galley, session.id, f"{door} -d '{LIST}' $GALLEY_MCP_URL/up")
        assert '"echo"' in listed
        assert "delete_all" not in listed
        asked = json.dumps({**json.loads(LIST), "method": "tools/call", "params": {"name": "delete_all"}})
        assert "Unknown tool" in await run(galley, session.id, f"{door} -d '{asked}' $GALLEY_MCP_URL/up")
        assert "no MCP server" in await run(galley, session.id, f"{door} -d '{LIST}' $GALLEY_MCP_URL/hid")
        assert upstream.calls() == []
        system = json.dumps(galley.script.bodies[0]["system"])
        assert "$GALLEY_MCP_URL/NAME" in system
        assert "as bearer token: up." in system


async def test_a_token_that_another_sandbox_has_stolen_is_worth_nothing_there(tmp_path: Path) -> None:
    async with web() as port, house(tmp_path) as galley:
        one, other = await galley.session(tools=[TOOLSET]), await galley.session(tools=[TOOLSET])
        token = (await run(galley, one.id, "cat $GALLEY_TOKEN_FILE")).strip()
        url = f"http://{HOST}:{port}/x"
        stolen = shlex.join(["curl", "-sS", "-m", "10", "-x", f"http://any:{token}@127.0.0.1:8431", url])
        assert (await run(galley, one.id, stolen)).startswith("GET /x")
        assert "bound to another sandbox" in await run(galley, other.id, stolen)
        # And past every sandbox, on the proxy's own socket, which only this user can open.
        async with galley.proxy() as proxy:
            answer = await proxy.get("/mcp/any", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, "bound to another" in answer.text) == (401, True)


async def test_a_session_that_ends_takes_its_way_out_along_at_once(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        gone.set()
        writer.close()

    connected = asyncio.Event()
    server = await asyncio.start_server(hold, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server, house(tmp_path) as galley:
        session = await galley.session(tools=[TOOLSET])
        request = (
            f"CONNECT {HOST}:{port} HTTP/1.1\\r\\nHost: {HOST}:{port}\\r\\nProxy-Authorization: Bearer %s\\r\\n\\r\\n"
        )
        opened = f"exec 3<>/dev/tcp/127.0.0.1/8431; printf '{request}' $(cat $GALLEY_TOKEN_FILE) >&3"
        spoken = "printf 'SSH-2.0-x\\r\\n' >&3; sleep 60"
        await run(galley, session.id, f"( {opened}; {spoken} ) >/dev/null 2>&1 & echo begun")
        async with asyncio.timeout(10):
            await connected.wait()
        await galley.client.beta.sessions.archive(session.id)
        async with asyncio.timeout(1.5):
            await gone.wait()
        async with galley.proxy() as proxy:
            assert (await proxy.get("/v1/sessions")).json()["data"] == []


async def test_a_proxy_that_was_killed_is_back_and_so_is_the_way_out(tmp_path: Path) -> None:
    async with web() as port, scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[TOOLSET, mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        url = f"http://{HOST}:{port}/x"
        assert (await run(galley, session.id, curl(url))).startswith("GET /x")
        (proxy,) = children()
        os.kill(proxy, signal.SIGKILL)
        await until(lambda: another(galley, proxy))
        assert (await run(galley, session.id, curl(url, "--retry", "5", "--retry-all-errors"))).startswith("GET /x")
        events = await galley.turn(session.id, "go", call("mcp__up__echo", text="still"), say("done"))
        assert text_of(of_type(events, "agent.mcp_tool_result")[0]) == "still"


def children() -> list[int]:
    return [] if (found := proxy_of(os.getpid())) is None else [found.pid]


async def another(galley: House, before: int) -> bool:
    """Whether a new proxy runs and answers."""
    if before in children():
        return False
    try:
        async with galley.proxy() as proxy:
            return (await proxy.get("/readyz")).status_code == 200
    except httpx2.TransportError:
        return False


async def test_when_the_proxy_lost_its_state_a_new_grant_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galley_server.broker.outlets.LOOK_S", 0.2)
    monkeypatch.setattr("galley_server.broker.outlets._AGAIN_S", 0.1)
    async with web() as port, scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[TOOLSET, mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        url = f"http://{HOST}:{port}/x"
        first = await run(galley, session.id, "cat $GALLEY_TOKEN_FILE")
        (proxy,) = children()
        os.kill(proxy, signal.SIGSTOP)
        for file in (galley.home / "vault_proxy").glob("state.db*"):
            file.unlink()
        os.kill(proxy, signal.SIGKILL)
        await until(lambda: another(galley, proxy))

        async def renewed() -> bool:
            return await run(galley, session.id, "cat $GALLEY_TOKEN_FILE") != first

        await until(renewed)
        assert (await run(galley, session.id, curl(url))).startswith("GET /x")
        events = await galley.turn(session.id, "go", call("mcp__up__echo", text="still"), say("done"))
        assert text_of(of_type(events, "agent.mcp_tool_result")[0]) == "still"


async def test_a_session_that_was_revoked_at_the_proxy_does_not_get_a_new_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galley_server.broker.outlets.LOOK_S", 0.2)
    async with web() as port, scripted() as upstream, house(tmp_path) as galley:
        session = await galley.session(tools=[TOOLSET, mcp_toolset("up", default=ALLOW)], servers={"up": upstream.url})
        url = f"http://{HOST}:{port}/x"
        assert (await run(galley, session.id, curl(url))).startswith("GET /x")
        async with galley.proxy() as proxy:
            await proxy.delete(f"/v1/sessions/{session.id}")
        assert "revoked" in await run(galley, session.id, f"sleep 1; {curl(url)}")
        events = await galley.turn(session.id, "go", call("mcp__up__echo", text="still"), say("done"))
        (result,) = of_type(events, "agent.mcp_tool_result")
        assert (result.is_error, "does not take this session's grant" in text_of(result)) == (True, True)
        assert upstream.calls() == []


async def test_after_a_restart_of_the_server_a_program_that_runs_still_finds_its_way(tmp_path: Path) -> None:
    async with web() as port:
        async with house(tmp_path, stays=True) as galley:
            session = await galley.session(tools=[TOOLSET])
            url = f"http://{HOST}:{port}/x"
            await run(galley, session.id, f"(while sleep 0.2; do {curl(url)}; done >> /workspace/log 2>&1) & echo ok")
        async with house(tmp_path) as galley:
            galley.sessions.append(session.id)
            await run(galley, session.id, ": > /workspace/log")

            async def logged() -> bool:
                return "GET /x" in await run(galley, session.id, "cat /workspace/log")

            await until(logged)


async def test_sessions_that_ended_while_the_proxy_was_away_are_ended_by_the_next_server(tmp_path: Path) -> None:
    async with house(tmp_path, stays=True) as galley:
        gone, kept = await galley.session(tools=[TOOLSET]), await galley.session(tools=[TOOLSET])
        for session in (gone, kept):
            await run(galley, session.id, "true")
        (proxy,) = children()
        os.kill(proxy, signal.SIGSTOP)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(galley.client.beta.sessions.archive(gone.id))
            await asyncio.sleep(0.5)
            os.kill(proxy, signal.SIGKILL)
        listed = galley.home / "vault_proxy" / "state.db"
        assert listed.exists()
    async with house(tmp_path) as galley, galley.proxy() as proxy_api:
        galley.sessions += [gone.id, kept.id]

        async def only_kept() -> bool:
            try:
                found = (await proxy_api.get("/v1/sessions")).json()["data"]
            except httpx2.TransportError:
                return False
            return [one["id"] for one in found] == [kept.id]

        await until(only_kept)


async def test_a_session_keeps_the_networking_that_it_was_made_with(tmp_path: Path) -> None:
    async with web() as port, house(tmp_path) as galley:
        session = await galley.session(tools=[TOOLSET], networking={"type": "limited", "allowed_hosts": []})
        opened: Any = {"type": "cloud", "networking": {"type": "unrestricted"}}
        await galley.client.beta.environments.update(session.environment_id, config=opened)
        assert "does not include the host" in await run(galley, session.id, curl(f"http://{HOST}:{port}/"))
