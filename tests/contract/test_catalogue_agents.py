"""Agents: versions, updates, archiving, lists, the default one."""

import asyncio
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from anthropic.types import beta
from galley_server.errors import Conflict, InvalidRequest, NotFound
from galley_server.wire.agent_request import AgentCreate, AgentUpdate
from galley_server.wire.query import AgentQuery, PageQuery
from galley_server.wire.validation import take

from tests.contract.catalogue_kit import Kitchen, open_kitchen
from tests.contract.sdk_strict import left_out, validate

pytestmark = pytest.mark.anyio

EVERYTHING = {
    "name": "cook",
    "model": {"id": "m", "effort": "high", "inference_geo": "eu", "speed": "fast"},
    "description": "d",
    "system": "s",
    "tools": [
        {
            "type": "agent_toolset_20260401",
            "configs": [
                {"name": "bash", "permission_policy": {"type": "always_ask"}},
                {"name": "web_search", "allowed_domains": ["a.example"], "user_location": {"type": "approximate"}},
                {"name": "web_fetch", "max_content_tokens": 5, "url_sources": {"user_input": "none"}},
            ],
        },
        {"type": "mcp_toolset", "mcp_server_name": "crm", "configs": [{"name": "find"}]},
        {"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object", "required": []}},
    ],
    "mcp_servers": [{"type": "url", "name": "crm", "url": "https://crm.example/mcp"}],
    "skills": [],
    "multiagent": None,
    "metadata": {"k": "v"},
    "execution_identity": {"type": "service_account"},
}


def update(**fields: object) -> AgentUpdate:
    return take(AgentUpdate, fields)


@pytest.mark.parametrize("request_", [EVERYTHING, {"name": "cook", "model": "m"}])
async def test_an_agent_validates_against_the_sdks_own_type(kitchen: Kitchen, request_: dict[str, object]) -> None:
    agent = await kitchen.runtime.agents.create(take(AgentCreate, request_))
    raw = agent.model_dump_json()
    validate(beta.BetaManagedAgentsAgent, raw)
    missing = set(left_out(beta.BetaManagedAgentsAgent, agent.model_dump(mode="json")))
    assert missing == set()
    assert await kitchen.runtime.agents.retrieve(agent.id) == agent


async def test_every_version_stays_as_it_was(kitchen: Kitchen) -> None:
    agents = kitchen.runtime.agents
    agent_id = await kitchen.agent(description="one")
    await agents.update(agent_id, update(description="two"))
    assert (await agents.retrieve(agent_id)).description == "two"
    assert (await agents.retrieve(agent_id, version=1)).description == "one"
    assert [agent.version for agent in (await agents.versions(agent_id, PageQuery())).data] == [2, 1]


async def test_an_update_without_effect_makes_no_version(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent()
    assert (await kitchen.runtime.agents.update(agent_id, update(name="cook"))).version == 1


@pytest.mark.parametrize("fields", [{"name": "other"}, {"name": "cook"}])
async def test_a_stale_version_is_a_conflict_even_if_nothing_would_change(
    kitchen: Kitchen, fields: dict[str, str]
) -> None:
    agent_id = await kitchen.agent()
    with pytest.raises(Conflict, match=rf"^version: {agent_id} is at version 1, not 2"):
        await kitchen.runtime.agents.update(agent_id, update(version=2, **fields))
    assert (await kitchen.runtime.agents.update(agent_id, update(version=1, name="x"))).version == 2


async def test_of_two_updates_of_one_version_one_wins(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent()
    ends = await asyncio.gather(
        *(kitchen.runtime.agents.update(agent_id, update(version=1, name=name)) for name in "ab"),
        return_exceptions=True,
    )
    assert sorted(type(end).__name__ for end in ends) == ["Agent", "Conflict"]


async def test_an_archived_agent_is_read_only_and_out_of_the_list(kitchen: Kitchen) -> None:
    agents = kitchen.runtime.agents
    agent_id = await kitchen.agent()
    archived = await agents.archive(agent_id)
    assert archived.archived_at is not None
    assert await agents.archive(agent_id) == archived == await agents.retrieve(agent_id)
    with pytest.raises(InvalidRequest, match="archived and cannot be changed"):
        await agents.update(agent_id, update(name="x"))
    assert (await agents.list(AgentQuery())).data == ()
    assert (await agents.list(AgentQuery(include_archived=True))).data == (archived,)


async def test_a_list_is_walked_to_its_end_newest_first(kitchen: Kitchen) -> None:
    made = [await kitchen.agent(name=f"a{number}") for number in range(5)]
    seen, page = [], None
    while True:
        found = await kitchen.runtime.agents.list(AgentQuery(limit=2, page=page))
        seen += [agent.id for agent in found.data]
        page = found.next_page
        if page is None:
            break
    assert seen == made[::-1]


async def test_a_list_is_cut_by_the_times_it_shows(kitchen: Kitchen) -> None:
    at = (await kitchen.runtime.agents.retrieve(await kitchen.agent())).created_at
    near = AgentQuery(created_at_gte=at, created_at_lte=at)
    assert len((await kitchen.runtime.agents.list(near)).data) == 1
    assert (await kitchen.runtime.agents.list(AgentQuery(created_at_gte=at + timedelta(milliseconds=1)))).data == ()
    assert (await kitchen.runtime.agents.list(AgentQuery(created_at_lte=at - timedelta(milliseconds=1)))).data == ()


async def test_a_cursor_of_one_agents_versions_is_none_of_anothers(kitchen: Kitchen) -> None:
    first, second = await kitchen.agent(), await kitchen.agent()
    await kitchen.runtime.agents.update(first, update(name="x"))
    page = (await kitchen.runtime.agents.versions(first, PageQuery(limit=1))).next_page
    with pytest.raises(InvalidRequest, match=r"^page: "):
        await kitchen.runtime.agents.versions(second, PageQuery(page=page))


async def test_an_unknown_agent_or_version_is_not_found(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent()
    with pytest.raises(NotFound, match="Agent agent_x was not found"):
        await kitchen.runtime.agents.retrieve("agent_x")
    with pytest.raises(NotFound, match=f"Agent {agent_id} has no version 2"):
        await kitchen.runtime.agents.retrieve(agent_id, version=2)
    with pytest.raises(NotFound):
        await kitchen.runtime.agents.versions("agent_x", PageQuery())


async def test_the_default_agent_is_one_and_stays(kitchen: Kitchen) -> None:
    first, second = await asyncio.gather(kitchen.runtime.agents.default(), kitchen.runtime.agents.default())
    assert first == second == await kitchen.runtime.agents.default()
    assert (first.model.id, [tool.type for tool in first.tools]) == ("m-1", ["agent_toolset_20260401"])


async def test_the_default_agent_follows_the_setting_and_keeps_what_was_changed(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path / "home", model="m-1") as kitchen:
        agent = await kitchen.runtime.agents.default()
        await kitchen.runtime.agents.update(agent.id, update(system="s"))
    async with open_kitchen(tmp_path / "home", model="m-2") as kitchen:
        after = await kitchen.runtime.agents.default()
        assert (after.id, after.model.id, after.system, after.version) == (agent.id, "m-2", "s", 3)


async def test_an_archived_default_agent_is_replaced(kitchen: Kitchen) -> None:
    first = await kitchen.runtime.agents.default()
    await kitchen.runtime.agents.archive(first.id)
    assert (await kitchen.runtime.agents.default()).id != first.id


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE agent_versions SET body = x'7b7d'",
        "DELETE FROM agent_versions",
        "INSERT OR REPLACE INTO agent_versions (agent, version, body) SELECT agent, version, body FROM agent_versions",
    ],
)
async def test_the_store_itself_keeps_versions_from_change(kitchen: Kitchen, statement: str) -> None:
    await kitchen.agent()
    with pytest.raises(sqlite3.IntegrityError):
        await kitchen.database.write(lambda connection: connection.execute(statement).rowcount)
