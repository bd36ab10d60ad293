"""Sessions: the three forms of an agent, initial events, changes, lists both ways, archiving, deleting."""

import asyncio
from datetime import timedelta

import pytest
from anthropic.types import beta
from galley_server.errors import InvalidRequest, NotFound
from galley_server.log.verify import Verified
from galley_server.runtime.liveness import Liveness
from galley_server.wire import events as ev
from galley_server.wire.agent_request import AgentUpdate
from galley_server.wire.query import EventQuery, SessionQuery
from galley_server.wire.session import Session
from galley_server.wire.session_request import SessionCreate, SessionUpdate
from galley_server.wire.validation import take

from tests.contract.catalogue_kit import Kitchen, events, message, row
from tests.contract.sdk_strict import left_out, validate

pytestmark = pytest.mark.anyio
TOOLSET = {"type": "agent_toolset_20260401"}


async def change(kitchen: Kitchen, session: Session, **fields: object) -> Session:
    return await kitchen.runtime.sessions.update(session.id, take(SessionUpdate, fields))


async def types(kitchen: Kitchen, session: Session) -> list[str]:
    return [event.type for event in (await kitchen.runtime.events.list(session.id, EventQuery())).data]


async def sessions(kitchen: Kitchen, **query: object) -> list[str]:
    return [session.id for session in (await kitchen.runtime.sessions.list(take(SessionQuery, query))).data]


async def test_a_session_validates_against_the_sdks_own_type(kitchen: Kitchen) -> None:
    file = await kitchen.file()
    session = await kitchen.session(title="t", metadata={"k": "v"}, resources=[{"type": "file", "file_id": file.id}])
    validate(beta.BetaManagedAgentsSession, session.model_dump_json())
    assert set(left_out(beta.BetaManagedAgentsSession, session.model_dump(mode="json"))) == set()


async def test_a_session_shows_itself_as_it_was_created(kitchen: Kitchen) -> None:
    session = await kitchen.session(title="t", metadata={"k": "v"})
    shown = await kitchen.runtime.sessions.retrieve(session.id)
    assert session == shown.model_copy(update={"stats": session.stats})
    assert (session.status, session.title, session.metadata) == ("idle", "t", {"k": "v"})
    assert kitchen.notes.woken == []


async def test_a_session_keeps_the_version_of_its_agent(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent(system="one")
    latest = await kitchen.session(agent=agent_id)
    await kitchen.runtime.agents.update(agent_id, take(AgentUpdate, {"system": "two"}))
    assert (await kitchen.runtime.sessions.retrieve(latest.id)).agent.system == "one"
    assert (await kitchen.session(agent=agent_id)).agent.version == 2
    pinned = await kitchen.session(agent={"type": "agent", "id": agent_id, "version": 1})
    assert (pinned.agent.version, pinned.agent.system) == (1, "one")
    unpinned = await kitchen.session(agent={"type": "agent", "id": agent_id})
    assert unpinned.agent.version == 2


async def test_overrides_hold_for_one_session(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent(system="s")
    overrides = {"type": "agent_with_overrides", "id": agent_id, "system": None, "model": "other"}
    session = await kitchen.session(agent=overrides)
    assert (session.agent.id, session.agent.system, session.agent.model.id) == (agent_id, None, "other")
    assert (await kitchen.runtime.agents.retrieve(agent_id)).system == "s"


async def test_with_initial_events_a_session_is_running_from_its_first_moment(kitchen: Kitchen) -> None:
    session = await kitchen.session(initial_events=[message("a"), message("b")])
    assert session.status == "running"
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "running"
    assert await sessions(kitchen, statuses=("running",)) == [session.id]
    assert await types(kitchen, session) == [
        "session.status_running",
        "session.thread_status_running",
        "user.message",
        "user.message",
    ]
    assert kitchen.notes.woken == [session.id]


async def test_a_message_makes_an_idle_session_running_at_once(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await kitchen.runtime.events.send(session.id, events(message()))
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "running"
    await kitchen.idle(session.id)
    assert (await kitchen.runtime.sessions.retrieve(session.id)).status == "idle"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("agent", "agent_x", "agent: Agent agent_x was not found"),
        ("environment_id", "env_x", "environment_id: Environment env_x was not found"),
        (
            "resources",
            [{"type": "file", "file_id": "file_x"}],
            "resources.0.file_id: File file_x was not found",
        ),
        (
            "initial_events",
            [{"type": "user.message", "content": [{"type": "image", "source": {"type": "file", "file_id": "file_x"}}]}],
            "initial_events.0.content.0.source.file_id: File file_x was not found",
        ),
    ],
)
async def test_what_a_session_refers_to_must_be_there(kitchen: Kitchen, field: str, value: object, says: str) -> None:
    with pytest.raises(NotFound) as refused:
        await kitchen.session(once=None, **{field: value})
    assert refused.value.message.startswith(says)
    assert await sessions(kitchen) == []


async def test_archived_agents_and_environments_begin_no_session(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent()
    environment = await kitchen.runtime.environments.default()
    running = await kitchen.session(agent=agent_id)
    await kitchen.runtime.agents.archive(agent_id)
    with pytest.raises(InvalidRequest, match=f"^agent: {agent_id} is archived"):
        await kitchen.session(agent=agent_id)
    await kitchen.runtime.environments.archive(environment.id)
    with pytest.raises(InvalidRequest, match=f"^environment_id: {environment.id} is archived") as refused:
        await kitchen.session(environment_id=environment.id)
    assert refused.value.error_code == "environment_archived"
    assert (await kitchen.runtime.sessions.retrieve(running.id)).agent.id == agent_id


async def test_a_mounted_file_outlives_the_uploaded_one(kitchen: Kitchen) -> None:
    file = await kitchen.file(b"data")
    session = await kitchen.session(
        resources=[{"type": "file", "file_id": file.id}, {"type": "file", "file_id": file.id, "mount_path": "a/b.csv"}]
    )
    await kitchen.runtime.files.delete(file.id)
    assert [resource.mount_path for resource in session.resources] == [
        f"/mnt/session/uploads/{file.id}",
        "/mnt/session/uploads/a/b.csv",
    ]
    for resource in session.resources:
        assert [piece async for piece in kitchen.runtime.files.content(resource.file_id)] == [b"data"]


async def test_an_update_changes_what_it_names_and_tells_the_stream(kitchen: Kitchen) -> None:
    session = await kitchen.session(title="t", metadata={"a": "1", "b": "2"})
    after = await change(kitchen, session, title="u", metadata={"a": None, "c": "3"})
    assert (after.title, after.metadata) == ("u", {"b": "2", "c": "3"})
    assert (await kitchen.runtime.sessions.retrieve(session.id)).title == "u"
    (event,) = (await kitchen.runtime.events.list(session.id, EventQuery())).data
    assert event.body.startswith(b'{"id":"sevt_')
    assert b'"type":"session.updated","title":"u","metadata":{"b":"2","c":"3"}' in event.body


async def test_an_update_without_effect_tells_nobody(kitchen: Kitchen) -> None:
    session = await kitchen.session(title="t", metadata={"a": "1"})
    await change(kitchen, session, title="t", metadata={"a": "1", "z": None})
    assert await types(kitchen, session) == []


async def test_null_clears_the_title_and_the_bag(kitchen: Kitchen) -> None:
    session = await kitchen.session(title="t", metadata={"a": "1"})
    after = await change(kitchen, session, title=None, metadata=None)
    assert (after.title, after.metadata) == (None, {})


async def test_many_changes_at_once_are_all_made(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(change(kitchen, session, title=str(number)))
    assert (await types(kitchen, session)).count("session.updated") == 40


async def test_tools_change_only_while_the_session_is_idle(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    after = await change(kitchen, session, agent={"tools": []})
    assert after.agent.tools == ()
    assert (await kitchen.runtime.sessions.retrieve(session.id)).agent == after.agent
    await kitchen.runtime.events.send(session.id, events(message()))
    with pytest.raises(InvalidRequest, match=r"^agent: the session is running"):
        await change(kitchen, session, agent={"tools": [TOOLSET]})
    assert (await change(kitchen, session, title="u")).title == "u"


async def test_updates_at_the_same_time_are_all_kept(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await asyncio.gather(*(change(kitchen, session, metadata={str(number): "v"}) for number in range(8)))
    assert len((await kitchen.runtime.sessions.retrieve(session.id)).metadata) == 8


async def test_a_running_session_is_neither_archived_nor_deleted(kitchen: Kitchen) -> None:
    session = await kitchen.session(initial_events=[message()])
    with pytest.raises(InvalidRequest, match=r"^cannot archive while running"):
        await kitchen.runtime.sessions.archive(session.id)
    with pytest.raises(InvalidRequest, match=r"^cannot delete while running"):
        await kitchen.runtime.sessions.delete(session.id)
    assert kitchen.notes.released == []


async def test_an_archived_session_is_terminated_and_takes_nothing_more(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    archived = await kitchen.runtime.sessions.archive(session.id)
    assert (archived.status, archived.archived_at is None) == ("terminated", False)
    assert await types(kitchen, session) == ["session.thread_status_terminated", "session.status_terminated"]
    assert kitchen.notes.released == [session.id]
    with pytest.raises(InvalidRequest, match="archived"):
        await kitchen.runtime.events.send(session.id, events(message()))
    with pytest.raises(InvalidRequest, match="archived"):
        await change(kitchen, session, title="u")
    again = await kitchen.runtime.sessions.archive(session.id)
    assert again.model_copy(update={"stats": archived.stats}) == archived
    assert again.stats == archived.stats


async def test_a_session_that_ended_in_an_error_can_still_be_archived(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    await kitchen.log.append(session.id, [row(ev.StatusTerminated(id="sevt_1"))])
    with pytest.raises(InvalidRequest, match="terminated"):
        await kitchen.runtime.events.send(session.id, events(message()))
    assert (await kitchen.runtime.sessions.archive(session.id)).archived_at is not None
    assert await types(kitchen, session) == ["session.status_terminated"]


async def test_a_deleted_session_is_gone_with_its_files_and_leaves_a_proof(kitchen: Kitchen) -> None:
    file = await kitchen.file()
    session = await kitchen.session(resources=[{"type": "file", "file_id": file.id}])
    deleted = await kitchen.runtime.sessions.delete(session.id)
    validate(beta.BetaManagedAgentsDeletedSession, deleted.model_dump_json())
    assert kitchen.notes.released == [session.id]
    for call in (kitchen.runtime.sessions.retrieve, kitchen.runtime.sessions.archive, kitchen.runtime.sessions.delete):
        with pytest.raises(NotFound):
            await call(session.id)
    with pytest.raises(NotFound):
        await kitchen.runtime.events.send(session.id, events(message()))
    with pytest.raises(NotFound):
        await kitchen.runtime.files.retrieve(session.resources[0].file_id)
    assert (await kitchen.runtime.files.retrieve(file.id)).id == file.id
    assert isinstance(await kitchen.store.verify(session.id), Verified)


async def test_lists_are_filtered(kitchen: Kitchen) -> None:
    agent_id = await kitchen.agent()
    first, second = await kitchen.session(agent=agent_id), await kitchen.session()
    await kitchen.runtime.agents.update(agent_id, take(AgentUpdate, {"name": "x"}))
    third = await kitchen.session(agent=agent_id, initial_events=[message()])
    await kitchen.runtime.sessions.archive(second.id)
    assert await sessions(kitchen) == [third.id, first.id]
    assert await sessions(kitchen, include_archived=True) == [third.id, second.id, first.id]
    assert await sessions(kitchen, order="asc") == [first.id, third.id]
    assert await sessions(kitchen, agent_id=agent_id, agent_version=1) == [first.id]
    assert await sessions(kitchen, agent_version=1) == [third.id, first.id]
    assert await sessions(kitchen, statuses=("idle",)) == [first.id]
    assert await sessions(kitchen, statuses=("terminated", "idle"), include_archived=True) == [second.id, first.id]
    assert await sessions(kitchen, deployment_id="depl_1") == []
    assert await sessions(kitchen, memory_store_id="memstore_1") == []


async def test_lists_are_cut_by_the_times_they_show(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    shown = Session.model_validate_json(session.model_dump_json()).created_at
    step = timedelta(milliseconds=1)
    assert await sessions(kitchen, created_at_gte=shown, created_at_lte=shown) == [session.id]
    assert await sessions(kitchen, created_at_gt=shown - step, created_at_lt=shown + step) == [session.id]
    assert await sessions(kitchen, created_at_gt=shown) == []
    assert await sessions(kitchen, created_at_lt=shown) == []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_list_is_walked_to_its_end_and_back(kitchen: Kitchen, order: str) -> None:
    made = [(await kitchen.session()).id for _ in range(5)]
    expected = made if order == "asc" else made[::-1]
    pages, page = [], None
    while True:
        found = await kitchen.runtime.sessions.list(take(SessionQuery, {"order": order, "limit": 2, "page": page}))
        pages.append([session.id for session in found.data])
        if found.next_page is None:
            break
        page = found.next_page
    assert pages == [expected[:2], expected[2:4], expected[4:]]
    back = await kitchen.runtime.sessions.list(
        take(SessionQuery, {"order": order, "limit": 2, "page": found.prev_page})
    )
    assert [session.id for session in back.data] == expected[2:4]
    first = await kitchen.runtime.sessions.list(
        take(SessionQuery, {"order": order, "limit": 2, "page": back.prev_page})
    )
    assert ([session.id for session in first.data], first.prev_page) == (expected[:2], None)


async def test_a_cursor_is_good_for_its_own_order_and_range_only(kitchen: Kitchen) -> None:
    first = await kitchen.session()
    await kitchen.session()
    page = (await kitchen.runtime.sessions.list(SessionQuery(limit=1))).next_page
    with pytest.raises(InvalidRequest, match=r"^page: this cursor belongs to the order 'desc'"):
        await kitchen.runtime.sessions.list(SessionQuery(page=page, order="asc"))
    with pytest.raises(InvalidRequest, match=r"^page: the created_at filter leaves out"):
        await kitchen.runtime.sessions.list(SessionQuery(page=page, created_at_lt=first.created_at))
    assert (await kitchen.runtime.sessions.list(SessionQuery(page=page, limit=5))).data[0].id == first.id


async def test_only_open_sessions_are_alive_to_the_hands(kitchen: Kitchen) -> None:
    alive, archived, deleted = [await kitchen.session() for _ in range(3)]
    await kitchen.runtime.sessions.archive(archived.id)
    await kitchen.runtime.sessions.delete(deleted.id)
    ids = [alive.id, archived.id, deleted.id, "sesn_x"]
    assert set(await Liveness(kitchen.store).alive(ids)) == {alive.id}


async def test_the_clocks_of_a_session_count_what_they_say(kitchen: Kitchen) -> None:
    session = await kitchen.session(initial_events=[message()])
    await kitchen.idle(session.id)
    idle = await kitchen.runtime.sessions.retrieve(session.id)
    assert idle.stats.duration_seconds >= idle.stats.active_seconds == idle.usage.active_seconds >= 0
    await kitchen.runtime.sessions.archive(session.id)
    first, second = [await kitchen.runtime.sessions.retrieve(session.id) for _ in range(2)]
    assert first.stats == second.stats


async def test_half_a_creation_does_not_exist(kitchen: Kitchen) -> None:
    file = await kitchen.file()
    request = take(
        SessionCreate,
        {
            "agent": await kitchen.agent(),
            "environment_id": (await kitchen.runtime.environments.default()).id,
            "resources": [{"type": "file", "file_id": file.id}, {"type": "file", "file_id": "file_x"}],
        },
    )
    with pytest.raises(NotFound, match=r"^resources\.1\.file_id"):
        await kitchen.runtime.sessions.create(request)
    found = await kitchen.database.read(lambda connection: connection.execute("SELECT count(*) FROM files").fetchone())
    assert found == (1,)
