"""MCP servers, vaults and hosts as a person in an MCP client uses them: with the tools, and no other API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from galley_server.demo.reply import call, say
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.integration.broker_kit import KEY, House, house
from tests.integration.mcp_door_upstream import scripted
from tests.integration.test_mcp_tools import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]


@asynccontextmanager
async def calling(galley: House) -> AsyncIterator[Caller]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
        Client(streamable_http_client(f"{galley.url}/mcp", http_client=http)) as client,
    ):
        yield Caller(client)


async def test_an_agent_gets_a_server_a_vault_and_a_host_and_its_calls_are_confirmed(tmp_path: Path) -> None:
    async with scripted() as upstream, house(tmp_path) as galley, calling(galley) as caller, galley.http() as http:
        vault = (await http.post("/v1/vaults", json={"display_name": "Alice"})).json()["id"]
        auth = {"type": "static_bearer", "mcp_server_url": upstream.url, "token": "bearer-secret-0001"}
        assert (await http.post(f"/v1/vaults/{vault}/credentials", json={"auth": auth})).status_code == 200

        agent = await caller("create_agent", name="cook", model="scripted-1", mcp_servers={"up": upstream.url})
        assert agent["mcp_servers"] == ["up"]
        listed = await caller("list_vaults")
        assert listed == {"vaults": [{"id": vault, "name": "Alice", "opens": [upstream.url]}]}
        environment = await caller("create_environment", name="narrow", allowed_hosts=["127.0.0.3"])
        made = await caller("create_session", agent_id=agent["id"], environment_id=environment["id"], vault_ids=[vault])
        session = made["session_id"]
        galley.sessions.append(session)

        galley.script.add(
            call("bash", command="curl -sS -m 10 http://127.0.0.2:9/"), call("mcp__up__echo", text="hello"), say("done")
        )
        sent = await caller("send_message", session_id=session, text="go")
        events = await caller.until_idle(session, sent["next_after"])
        (refused,) = [one for one in events if one["type"] == "agent.tool_result"]
        assert "127.0.0.2" in refused["text"]
        (use,) = [one for one in events if one["type"] == "agent.mcp_tool_use"]
        assert (use["server"], use["tool"], use["input"]) == ("up", "echo", {"text": "hello"})
        (waiting,) = (await caller("get_session", session_id=session))["pending"]
        assert (waiting["server"], waiting["tool"]) == ("up", "echo")
        assert upstream.calls() == []

        answered = await caller(
            "confirm_tool", session_id=session, tool_use_id=waiting["tool_use_id"], decision="allow"
        )
        events = await caller.until_idle(session, answered["next_after"])
        (result,) = [one for one in events if one["type"] == "agent.mcp_tool_result"]
        assert result["text"] == "hello"
        (received,) = upstream.calls()
        assert received.headers["authorization"] == "Bearer bearer-secret-0001"


async def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    async with house(tmp_path) as galley, calling(galley) as caller:
        said = await caller.fails("create_agent", name="cook", model="scripted-1", mcp_servers={"up": "ftp://x"})
        assert "mcp_servers" in said
        assert "ftp" not in said.partition("mcp_servers")[0]
        assert "allowed_hosts" in await caller.fails("create_environment", name="n", allowed_hosts=["https://x/y"])
        assert "vault" in await caller.fails("create_session", vault_ids=["vlt_none"])
        assert "page" in await caller.fails("list_vaults", page="no page of ours")


async def test_without_a_vault_proxy_vaults_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path, environ={"GALLEY_BROKER": "off"}) as galley, calling(galley) as caller:
        assert "GALLEY_BROKER" in await caller.fails("create_session", vault_ids=["vlt_1"])
        assert "GALLEY_BROKER" in await caller.fails("list_vaults")
        agent = await caller("create_agent", name="cook", model="scripted-1", mcp_servers={"up": "https://example.com"})
        made = await caller("create_session", agent_id=agent["id"])
        galley.script.add(say("hello"))
        sent = await caller("send_message", session_id=made["session_id"], text="go")
        events = await caller.until_idle(made["session_id"], sent["next_after"])
        assert [one["type"] for one in events][-2:] == ["agent.message", "session.status_idle"]
        assert any("GALLEY_BROKER" in str(one) for one in events if one["type"] == "session.error")
