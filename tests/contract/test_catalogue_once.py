"""Repeatable calls: one effect and one answer per key, whoever repeats it and whenever."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from anyio import to_thread
from galley_server.errors import InvalidRequest, NotFound
from galley_server.log.answers import KEPT_FOR
from galley_server.log.instant import to_micros
from galley_server.runtime.idempotency import Idempotency
from galley_server.wire.agent_request import AgentCreate, AgentUpdate
from galley_server.wire.environment import EnvironmentCreate
from galley_server.wire.query import AgentQuery, EventQuery, FileQuery, SessionQuery
from galley_server.wire.session_request import SessionCreate, SessionUpdate
from galley_server.wire.validation import take

from tests.contract.catalogue_kit import Kitchen, events, message, open_kitchen, pieces

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
KEY = Idempotency("key-1", "fingerprint")
Effect = Callable[[Kitchen, Idempotency], Awaitable[object]]


async def make_agent(kitchen: Kitchen, once: Idempotency) -> object:
    return await kitchen.runtime.agents.create(take(AgentCreate, {"name": "cook", "model": "m"}), once=once)


async def make_environment(kitchen: Kitchen, once: Idempotency) -> object:
    return await kitchen.runtime.environments.create(EnvironmentCreate(name="n"), once=once)


async def make_session(kitchen: Kitchen, once: Idempotency) -> object:
    (file,) = (await kitchen.runtime.files.list(FileQuery())).data or [await kitchen.file()]
    agent = (await kitchen.runtime.agents.default()).id
    request = {
        "agent": agent,
        "environment_id": (await kitchen.runtime.environments.default()).id,
        "resources": [{"type": "file", "file_id": file.id}],
        "initial_events": [message()],
    }
    return (await kitchen.runtime.sessions.create(take(SessionCreate, request), once=once)).model_dump_json()


async def upload(kitchen: Kitchen, once: Idempotency) -> object:
    return await kitchen.runtime.files.upload("a", None, pieces(b"x"), once=lambda sha256: once)


async def count(kitchen: Kitchen, table: str) -> int:
    (found,) = await kitchen.database.read(
        lambda connection: connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    )
    return int(found)


EFFECTS = [
    pytest.param(make_agent, "agents", id="agent"),
    pytest.param(make_environment, "environments", id="environment"),
    pytest.param(upload, "files", id="file"),
]


@pytest.mark.parametrize(("effect", "table"), EFFECTS)
async def test_a_repetition_gets_the_first_answer_and_has_no_effect(
    kitchen: Kitchen, effect: Effect, table: str
) -> None:
    first = await effect(kitchen, KEY)
    assert await effect(kitchen, KEY) == first
    assert await count(kitchen, table) == 1


@pytest.mark.parametrize(("effect", "table"), EFFECTS)
async def test_of_many_at_once_one_has_an_effect_and_all_get_its_answer(
    kitchen: Kitchen, effect: Effect, table: str
) -> None:
    answers = await asyncio.gather(*(effect(kitchen, KEY) for _ in range(6)))
    assert all(answer == answers[0] for answer in answers)
    assert await count(kitchen, table) == 1


async def test_a_session_is_made_once_with_one_set_of_files(kitchen: Kitchen) -> None:
    await kitchen.file()
    answers = await asyncio.gather(*(make_session(kitchen, KEY) for _ in range(4)))
    assert all(answer == answers[0] for answer in answers)
    (session,) = (await kitchen.runtime.sessions.list(SessionQuery())).data
    assert await count(kitchen, "files") == 2
    assert kitchen.notes.woken == [session.id]


async def test_events_are_sent_once(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    send = kitchen.runtime.events.send
    answers = await asyncio.gather(*(send(session.id, events(message()), once=KEY) for _ in range(6)))
    assert all(answer == answers[0] for answer in answers)
    assert len((await kitchen.runtime.events.list(session.id, EventQuery())).data) == 1
    await kitchen.idle(session.id)
    assert await send(session.id, events(message()), once=KEY) == answers[0]


async def test_an_answer_to_a_call_can_be_repeated_although_the_call_is_answered(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    call_id = await kitchen.call(session.id)
    confirmation = events({"type": "user.tool_confirmation", "tool_use_id": call_id, "result": "allow"})
    first = await kitchen.runtime.events.send(session.id, confirmation, once=KEY)
    assert await kitchen.runtime.events.send(session.id, confirmation, once=KEY) == first


async def test_an_update_is_not_applied_again_over_a_later_one(kitchen: Kitchen) -> None:
    session = await kitchen.session(title="a")
    update = kitchen.runtime.sessions.update
    first = await update(session.id, SessionUpdate(title="a"), once=KEY)
    await update(session.id, SessionUpdate(title="b"))
    assert await update(session.id, SessionUpdate(title="a"), once=KEY) == first.model_validate_json(
        first.model_dump_json()
    )
    assert (await kitchen.runtime.sessions.retrieve(session.id)).title == "b"


async def test_archiving_is_repeated_with_its_first_answer(kitchen: Kitchen) -> None:
    session = await kitchen.session()
    first = await kitchen.runtime.sessions.archive(session.id, once=KEY)
    again = await kitchen.runtime.sessions.archive(session.id, once=KEY)
    assert again.model_dump_json() == first.model_dump_json()


async def test_a_key_is_good_for_one_request_only(kitchen: Kitchen) -> None:
    await make_agent(kitchen, KEY)
    with pytest.raises(InvalidRequest, match=r"^idempotency-key: 'key-1' was used for another request"):
        await make_agent(kitchen, Idempotency("key-1", "other"))


async def test_a_refused_call_leaves_its_key_free(kitchen: Kitchen) -> None:
    update = kitchen.runtime.agents.update
    with pytest.raises(NotFound):
        await update("agent_x", AgentUpdate(name="x"), once=KEY)
    assert (await update(await kitchen.agent(), AgentUpdate(name="x"), once=KEY)).name == "x"


async def test_keys_outlive_a_restart(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path / "home") as kitchen:
        first = await make_agent(kitchen, KEY)
    async with open_kitchen(tmp_path / "home") as kitchen:
        assert await make_agent(kitchen, KEY) == first


async def test_keys_are_kept_for_a_day_at_least_and_not_for_ever(kitchen: Kitchen) -> None:
    assert timedelta(hours=24) <= KEPT_FOR
    await make_agent(kitchen, KEY)
    age = to_micros(datetime.now(UTC)) - int((KEPT_FOR + timedelta(seconds=1)) / timedelta(microseconds=1))
    await kitchen.database.write(lambda connection: connection.execute("UPDATE answers SET at = ?", (age,)).rowcount)
    await make_agent(kitchen, Idempotency("key-2", "fingerprint"))
    assert await count(kitchen, "answers") == 1


def repeat_until_killed(home: Path, lines: int) -> dict[str, str]:
    """Run the program, kill it after so many acknowledgements, and return them: key and agent."""
    command = [sys.executable, "-m", "tests.contract.repeating_program", str(home)]
    acknowledged: dict[str, str] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout, start=1):
            if count == lines:
                process.kill()
            key, _, agent_id = line.partition(" ")
            if agent_id.endswith("\n"):  # the last line may have been cut off
                acknowledged[key] = agent_id.strip()
    return acknowledged


@pytest.mark.parametrize("lines", [1, 8, 21])
async def test_a_repetition_after_a_kill_has_one_effect_in_all(tmp_path: Path, lines: int) -> None:
    home = tmp_path / "home"
    acknowledged = await to_thread.run_sync(repeat_until_killed, home, lines)
    async with open_kitchen(home) as kitchen:
        for key, agent_id in acknowledged.items():
            assert (await kitchen.agent_once(key)).id == agent_id
        # Whether the call that was under way took effect before the kill is open; that it has one now is not.
        await kitchen.agent_once(f"key-{len(acknowledged)}")
        names = [agent.name for agent in (await kitchen.runtime.agents.list(AgentQuery(limit=100))).data]
        assert sorted(names) == sorted(f"key-{number}" for number in range(len(names)))
        assert len(names) - len(acknowledged) in (1, 2)
