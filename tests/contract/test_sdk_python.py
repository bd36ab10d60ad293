"""The official Python SDK, sync and async, unmodified, drives every endpoint; every answer is strictly of its type."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic._streaming import SSEDecoder
from anthropic.lib.sessions import accumulate_managed_agents_event
from anthropic.types.beta.sessions import BetaManagedAgentsAgentMessageEvent, BetaManagedAgentsTextBlock

from tests.contract.sdk_driver import STREAMED, Driver, Kind, connect, event_faults
from tests.contract.sdk_server import Galley
from tests.contract.sdk_strict import validate

pytest_plugins = ["tests.contract.galley_fixture"]
pytestmark = pytest.mark.anyio

IDLE = "session.status_idle"
WEATHER = {
    "type": "custom",
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKING = {
    "type": "agent_toolset_20260401",
    "default_config": {"permission_policy": {"type": "always_ask"}},
    "configs": [{"name": "read", "enabled": False}],
}


@pytest.fixture(params=["sync", "async"])
async def sdk(request: pytest.FixtureRequest, galley: Galley) -> AsyncIterator[Driver]:
    kind: Kind = request.param
    driver = connect(kind, url=galley.url, key=galley.key)
    yield driver
    await driver.call(driver.client.close)
    driver.check()


def unique(name: str) -> str:
    return f"{name} {uuid.uuid4()}"


def said(text: str) -> dict[str, Any]:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


async def new_session(sdk: Driver, **more: Any) -> Any:
    tools = more.pop("tools", [])
    agent = await sdk.call(sdk.beta.agents.create, name=unique("agent"), model="scripted-1", tools=tools)
    environment = await sdk.call(sdk.beta.environments.create, name=unique("environment"))
    return await sdk.call(sdk.beta.sessions.create, agent=agent.id, environment_id=environment.id, **more)


async def history(sdk: Driver, session_id: str, **query: Any) -> list[Any]:
    return await sdk.all(sdk.beta.sessions.events.list, session_id, **query)


async def idle_again(sdk: Driver, session_id: str, *events: dict[str, Any]) -> list[Any]:
    """Send, and read the stream that was opened before up to the next idle."""
    stream = await sdk.call(sdk.beta.sessions.events.stream, session_id)
    await sdk.call(sdk.beta.sessions.events.send, session_id, events=list(events))
    return await sdk.until(stream, IDLE)


async def test_an_agent_is_created_with_everything_it_can_have(sdk: Driver) -> None:
    agents = sdk.beta.agents
    agent = await sdk.call(
        agents.create,
        name=unique("full"),
        model={"id": "scripted-1", "effort": "low", "speed": "standard"},
        description="Does things.",
        system="Be brief.",
        metadata={"team": "a"},
        mcp_servers=[{"type": "url", "name": "docs", "url": "https://docs.example.com/mcp"}],
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"enabled": True, "permission_policy": {"type": "always_allow"}},
                "configs": [
                    {"name": "bash", "permission_policy": {"type": "always_ask"}},
                    {"name": "web_search", "allowed_domains": ["example.com"]},
                    {"name": "web_fetch", "enabled": False},
                ],
            },
            {"type": "mcp_toolset", "mcp_server_name": "docs", "configs": [{"name": "search", "enabled": True}]},
            WEATHER,
        ],
    )
    assert (agent.version, agent.type, agent.archived_at) == (1, "agent", None)
    assert agent.model.effort.type == "low"
    assert agent.tools[2].input_schema.required == ["city"]
    assert await sdk.call(agents.retrieve, agent.id) == agent


async def test_an_agent_changes_by_versions(sdk: Driver) -> None:
    agents = sdk.beta.agents
    first = await sdk.call(agents.create, name=unique("versions"), model="scripted-1", system="one")
    second = await sdk.call(agents.update, first.id, version=1, system="two")
    same = await sdk.call(agents.update, first.id, version=2, system="two")
    assert (second.version, same.version) == (2, 2)
    assert (await sdk.call(agents.retrieve, first.id, version=1)).system == "one"
    versions = await sdk.all(agents.versions.list, first.id, limit=1)
    assert [one.version for one in versions] == [2, 1]
    with pytest.raises(anthropic.ConflictError):
        await sdk.call(agents.update, first.id, version=1, system="three")


async def test_agents_are_listed_by_time_and_archived_ones_only_when_asked(sdk: Driver) -> None:
    agents = sdk.beta.agents
    made = [await sdk.call(agents.create, name=unique("listed"), model="scripted-1") for _ in range(3)]
    gone = await sdk.call(agents.archive, made[1].id)
    assert gone.archived_at is not None
    span = {"created_at_gte": made[0].created_at, "created_at_lte": made[2].created_at + timedelta(seconds=1)}
    shown = [one.id for one in await sdk.all(agents.list, limit=1, **span)]
    everything = [one.id for one in await sdk.all(agents.list, limit=1, include_archived=True, **span)]
    ids = [one.id for one in made]
    assert [one for one in shown if one in ids] == [ids[2], ids[0]]
    assert [one for one in everything if one in ids] == ids[::-1]


async def test_an_environment_lives_from_creation_to_deletion(sdk: Driver) -> None:
    environments = sdk.beta.environments
    made = await sdk.call(
        environments.create,
        name=unique("lab"),
        description="A lab.",
        metadata={"team": "a"},
        config={
            "type": "cloud",
            "networking": {"type": "limited", "allowed_hosts": ["example.com"], "allow_mcp_servers": True},
        },
    )
    changed = await sdk.call(environments.update, made.id, description=None, metadata={"team": None, "room": "1"})
    assert (changed.description, changed.metadata) == (None, {"room": "1"})
    assert (await sdk.call(environments.retrieve, made.id)).config.networking.allowed_hosts == ["example.com"]
    assert made.id in [one.id for one in await sdk.all(environments.list, limit=1)]
    assert (await sdk.call(environments.archive, made.id)).archived_at is not None
    assert made.id in [one.id for one in await sdk.all(environments.list, include_archived=True)]
    assert (await sdk.call(environments.delete, made.id)).id == made.id
    with pytest.raises(anthropic.NotFoundError):
        await sdk.call(environments.retrieve, made.id)


async def test_a_session_is_created_from_each_form_of_agent(sdk: Driver) -> None:
    agent = await sdk.call(sdk.beta.agents.create, name=unique("forms"), model="scripted-1", system="one")
    await sdk.call(sdk.beta.agents.update, agent.id, system="two")
    environment = await sdk.call(sdk.beta.environments.create, name=unique("forms"))
    forms: list[Any] = [
        agent.id,
        {"type": "agent", "id": agent.id, "version": 1},
        {"type": "agent_with_overrides", "id": agent.id, "system": "three", "tools": [WEATHER]},
    ]
    made = [
        await sdk.call(sdk.beta.sessions.create, agent=form, environment_id=environment.id, metadata={"k": "v"})
        for form in forms
    ]
    assert [(one.agent.version, one.agent.system) for one in made] == [(2, "two"), (1, "one"), (2, "three")]
    assert {one.status for one in made} == {"idle"}


async def test_a_session_is_changed_archived_and_deleted(sdk: Driver) -> None:
    sessions = sdk.beta.sessions
    session = await new_session(sdk, title="first", metadata={"a": "1"})
    changed = await sdk.call(sessions.update, session.id, title="second", metadata={"a": None, "b": "2"})
    assert (changed.title, changed.metadata) == ("second", {"b": "2"})
    retooled = await sdk.call(sessions.update, session.id, agent={"tools": [WEATHER]})
    assert retooled.agent.tools[0].name == "weather"
    archived = await sdk.call(sessions.archive, session.id)
    assert (archived.status, archived.archived_at is None) == ("terminated", False)
    assert (await sdk.call(sessions.delete, session.id)).type == "session_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.call(sessions.retrieve, session.id)


async def test_sessions_are_listed_in_both_directions(sdk: Driver) -> None:
    sessions = sdk.beta.sessions
    agent = await sdk.call(sdk.beta.agents.create, name=unique("pages"), model="scripted-1")
    environment = await sdk.call(sdk.beta.environments.create, name=unique("pages"))
    made = [(await sdk.call(sessions.create, agent=agent.id, environment_id=environment.id)).id for _ in range(5)]
    mine = {"agent_id": agent.id, "agent_version": 1, "statuses": ["idle", "running"]}
    assert [one.id for one in await sdk.all(sessions.list, limit=2, **mine)] == made[::-1]
    assert [one.id for one in await sdk.all(sessions.list, limit=2, order="asc", **mine)] == made
    first = await sdk.page(sessions.list, limit=2, **mine)
    second = await sdk.page(sessions.list, limit=2, page=first.next_page, **mine)
    back = await sdk.page(sessions.list, limit=2, page=second.prev_page, **mine)
    assert (first.prev_page, [one.id for one in back.data]) == (None, [one.id for one in first.data])
    with pytest.raises(anthropic.BadRequestError):
        await sdk.page(sessions.list, page=first.next_page, order="asc", **mine)
    assert await sdk.all(sessions.list, statuses=["terminated"], agent_id=agent.id) == []
    assert await sdk.all(sessions.list, agent_id=agent.id, created_at_gt="2100-01-01T00:00:00Z") == []


async def test_a_message_is_answered_on_the_stream_previews_first(sdk: Driver) -> None:
    session = await new_session(sdk)
    stream = await sdk.call(
        sdk.beta.sessions.events.stream, session.id, event_deltas=["agent.message", "agent.thinking"]
    )
    sent = await sdk.call(sdk.beta.sessions.events.send, session.id, events=[said("think about cats")])
    seen = await sdk.until(stream, IDLE)
    assert [event.id for event in sent.data] == [seen[0].id]
    preview: BetaManagedAgentsAgentMessageEvent | None = None
    shown = ""
    for event in seen:
        preview = accumulate_managed_agents_event(preview, event)
        if event.type == "event_delta":
            assert preview is not None
            shown = "".join(part.text for part in preview.content if isinstance(part, BetaManagedAgentsTextBlock))
    assert preview is not None
    (block,) = preview.content
    assert isinstance(block, BetaManagedAgentsTextBlock)
    assert shown
    assert block.text == "You said: think about cats"
    assert block.text.startswith(shown)
    kinds = [event.type for event in seen]
    assert kinds.index("event_start") < kinds.index("agent.message")
    assert "agent.thinking" in kinds
    stored = [event for event in seen if not event.type.startswith("event_")]
    assert [event.id for event in await history(sdk, session.id, limit=3)] == list(
        dict.fromkeys(event.id for event in stored)
    )


async def test_history_is_filtered_ordered_and_paged(sdk: Driver) -> None:
    session = await new_session(sdk)
    await idle_again(sdk, session.id, said("one"))
    await idle_again(sdk, session.id, said("two"))
    whole = await history(sdk, session.id)
    assert [event.id for event in await history(sdk, session.id, order="desc", limit=2)] == [
        event.id for event in whole[::-1]
    ]
    messages = await history(sdk, session.id, types=["user.message", "agent.message"])
    assert [event.type for event in messages] == ["user.message", "agent.message"] * 2
    middle = messages[1].processed_at
    later = await history(sdk, session.id, created_at_gt=middle, types=["user.message", "agent.message"])
    earlier = await history(sdk, session.id, created_at_lte=middle, types=["user.message", "agent.message"])
    assert [event.id for event in earlier + later] == [event.id for event in messages]


async def test_every_event_of_a_stream_is_strictly_of_the_sdks_type(galley: Galley) -> None:
    sdk = connect("async", url=galley.url, key=galley.key)
    session = await new_session(sdk, tools=[ASKING, WEATHER])
    path = f"/v1/sessions/{session.id}/events/stream"
    query = {"event_deltas[]": ["agent.message", "agent.thinking"]}
    async with (
        asyncio.timeout(30),
        httpx2.AsyncClient(base_url=galley.url, headers={"x-api-key": galley.key}) as raw,
        raw.stream("GET", path, params=query) as listening,
    ):
        await idle_again(sdk, session.id, said("think of cats"))
        seen = await idle_again(sdk, session.id, said("run"))
        (asked,) = seen[-1].stop_reason.event_ids
        deny = {"type": "user.tool_confirmation", "tool_use_id": asked, "result": "deny", "deny_message": "no"}
        await idle_again(sdk, session.id, deny)
        seen = await idle_again(sdk, session.id, said("call weather"))
        (called,) = seen[-1].stop_reason.event_ids
        answer = {"type": "user.custom_tool_result", "custom_tool_use_id": called, "content": [text("rain")]}
        await idle_again(sdk, session.id, answer)
        await sdk.call(sdk.beta.sessions.update, session.id, title="new", agent={"tools": []})
        await sdk.call(sdk.beta.sessions.delete, session.id)
        frames = [frame async for frame in SSEDecoder().aiter_bytes(listening.aiter_bytes())]
    for frame in frames:
        validate(STREAMED, frame.data)
        assert list(event_faults(frame.json())) == []
        assert frame.json()["type"] == frame.event
    assert {frame.event for frame in frames} == {
        "agent.custom_tool_use",
        "agent.message",
        "agent.thinking",
        "agent.tool_result",
        "agent.tool_use",
        "event_delta",
        "event_start",
        "session.deleted",
        "session.status_idle",
        "session.status_running",
        "session.thread_status_idle",
        "session.thread_status_running",
        "session.updated",
        "session.usage",
        "span.model_request_end",
        "span.model_request_start",
        "user.custom_tool_result",
        "user.message",
        "user.tool_confirmation",
    }
    await sdk.client.close()


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


async def test_initial_events_begin_a_session_that_runs(sdk: Driver) -> None:
    session = await new_session(sdk, initial_events=[said("hello")])
    assert session.status == "running"
    stream = await sdk.call(sdk.beta.sessions.events.stream, session.id, extra_query={"after_event_id": "row_0"})
    seen = await sdk.until(stream, IDLE)
    assert "agent.message" in [event.type for event in seen]


async def test_an_interrupt_ends_the_turn(sdk: Driver) -> None:
    session = await new_session(sdk)
    stream = await sdk.call(sdk.beta.sessions.events.stream, session.id)
    await sdk.call(sdk.beta.sessions.events.send, session.id, events=[said("take for ever")])
    await sdk.until(stream, "span.model_request_start")
    seen = await idle_again(sdk, session.id, {"type": "user.interrupt"})
    assert seen[-1].stop_reason.type == "end_turn"
    assert (await sdk.call(sdk.beta.sessions.retrieve, session.id)).status == "idle"


async def test_a_file_is_uploaded_described_downloaded_and_deleted(sdk: Driver) -> None:
    files = sdk.beta.files
    made = await sdk.call(files.upload, file=("sales.csv", b"a,b\n1,2\n", "text/csv"), expires_in_seconds=3600)
    assert (made.filename, made.mime_type, made.size_bytes) == ("sales.csv", "text/csv", 8)
    assert made.expires_at is not None
    assert await sdk.call(files.retrieve_metadata, made.id) == made
    content = await sdk.call(files.download, made.id)
    assert await sdk.call(content.read) == b"a,b\n1,2\n"
    assert [one.id for one in await sdk.all(files.list, ids=[made.id, "file_none"])] == [made.id]
    assert made.id in [one.id for one in await sdk.all(files.list, limit=1)]
    assert (await sdk.call(files.delete, made.id)).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.call(files.retrieve_metadata, made.id)


async def test_a_session_is_given_a_file(sdk: Driver) -> None:
    made = await sdk.call(sdk.beta.files.upload, file=("sales.csv", b"a,b\n1,2\n", "text/csv"))
    session = await new_session(
        sdk, resources=[{"type": "file", "file_id": made.id, "mount_path": "/workspace/sales.csv"}]
    )
    (resource,) = session.resources
    assert (resource.type, resource.mount_path) == ("file", "/workspace/sales.csv")
    copies = await sdk.all(sdk.beta.files.list, scope_id=session.id)
    assert [one.id for one in copies] == [resource.file_id]


async def test_models_are_listed_and_described(sdk: Driver) -> None:
    listed = await sdk.all(sdk.beta.models.list, limit=1)
    assert len(listed) >= 2
    assert await sdk.call(sdk.beta.models.retrieve, listed[0].id) == listed[0]


async def test_a_repeated_key_does_a_thing_once(sdk: Driver) -> None:
    session = await new_session(sdk)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    send = sdk.beta.sessions.events.send
    first = await sdk.call(send, session.id, events=[said("once")], extra_headers=key)
    again = await sdk.call(send, session.id, events=[said("once")], extra_headers=key)
    assert [event.id for event in first.data] == [event.id for event in again.data]
    with pytest.raises(anthropic.BadRequestError, match="idempotency-key"):
        await sdk.call(send, session.id, events=[said("twice")], extra_headers=key)
    assert len(await history(sdk, session.id, types=["user.message"])) == 1


async def test_a_conflict_is_not_tried_again(sdk: Driver) -> None:
    agent = await sdk.call(sdk.beta.agents.create, name=unique("conflict"), model="scripted-1")
    before = len(sdk.answers)
    with pytest.raises(anthropic.ConflictError):
        await sdk.call(sdk.beta.agents.update, agent.id, version=7, name="late")
    assert len(sdk.answers) == before + 1


async def test_a_deleted_session_ends_its_streams(sdk: Driver) -> None:
    session = await new_session(sdk)
    stream = await sdk.call(sdk.beta.sessions.events.stream, session.id)
    await sdk.call(sdk.beta.sessions.delete, session.id)
    seen = await sdk.rest(stream)
    assert seen[-1].type == "session.deleted"


async def test_the_tool_runner_answers_custom_tools(galley: Galley) -> None:
    sdk = connect("async", url=galley.url, key=galley.key)

    @anthropic.beta_async_tool(name="weather")
    async def weather(city: str) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    session = await new_session(sdk, tools=[WEATHER], initial_events=[said("call weather")])
    runner = sdk.beta.sessions.events.tool_runner(session.id, tools=[weather], max_idle=0.3)
    calls = [(call.name, call.posted, call.is_error) async for call in runner]
    assert calls == [("weather", True, False)]
    (message,) = await history(sdk, session.id, types=["agent.message"])
    assert message.content[0].text == "The tool said: rain in Paris"
    await sdk.client.close()
    sdk.check()


async def test_older_clients_that_add_the_beta_flag_are_served(sdk: Driver) -> None:
    made = await sdk.call(sdk.beta.agents.create, name=unique("beta"), model="scripted-1", extra_query={"beta": "true"})
    listed = await sdk.all(sdk.beta.agents.list, extra_query={"beta": "true"}, workspace_id="wrkspc_1")
    assert made.id in [one.id for one in listed]
