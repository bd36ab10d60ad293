"""What a client was told stays true when the server dies: answers, interrupts and waiting messages are not lost."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from galley_server.demo.transcript import JSON
from galley_server.ids import new_id
from galley_server.log.state import INTERRUPTED

from tests.acceptance.crash_kit import Event, Fuse, Site, answer_in, assert_whole, of_type, open_site, texts

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

HOLD = "echo x >> count; touch begun; until [ -e go ]; do sleep 0.02; done; wc -l < count"
ASKING: JSON = {
    "type": "agent_toolset_20260401",
    "default_config": {"enabled": True, "permission_policy": {"type": "always_ask"}},
}
WEATHER: JSON = {"type": "custom", "name": "weather", "description": "d", "input_schema": {"type": "object"}}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, "bubblewrap") as site:
        yield site


async def blocked(site: Site, session: str, text: str) -> str:
    """Say something that ends in a call which waits for the client; return the call's id."""
    await site.say(session, text)
    idle = (await site.until(session, "session.status_idle"))[-1]
    (call,) = idle["stop_reason"]["event_ids"]
    return str(call)


async def until_end_of_turn(site: Site, session: str, after: str) -> list[Event]:
    events = await site.until(session, "session.status_idle", after=after)
    assert events[-1]["stop_reason"]["type"] == "end_turn"
    rows = site.rows(session)
    assert_whole(rows)
    assert site.proven(session) == len(rows)
    return events


@pytest.mark.parametrize("fuse", [Fuse("before", "user.tool_confirmation"), Fuse("after", "user.tool_confirmation")])
async def test_a_confirmation_is_carried_out_once_by_the_next_server(site: Site, fuse: Fuse) -> None:
    key = new_id("req")
    async with site.serving(fuse) as server:
        session = await site.session(ASKING)
        call = await blocked(site, session, "run: echo x >> count; wc -l < count")
        confirmation: JSON = {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}
        site.armed.touch()
        with pytest.raises(httpx2.TransportError):
            await site.send(session, confirmation, key=key)
        await server.died()
    async with site.serving():
        (sent,) = await site.send(session, confirmation, key=key)
        assert answer_in(await until_end_of_turn(site, session, sent["id"])) == "It said: 1"
        assert len(of_type(site.rows(session), "user.tool_confirmation")) == 1
        assert await site.count(session) == ["x"]


async def test_a_call_that_waits_for_the_client_goes_on_waiting_through_a_restart(site: Site) -> None:
    async with site.serving() as server:
        session = await site.session(ASKING)
        call = await blocked(site, session, "run: echo x >> count; wc -l < count")
        await server.kill()
    before = site.rows(session)
    async with site.serving():
        assert (await site.http.get(f"/v1/sessions/{session}")).json()["status"] == "idle"
        confirmation: JSON = {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}
        (sent,) = await site.send(session, confirmation)
        assert site.rows(session)[len(before)].type == "user.tool_confirmation"
        assert answer_in(await until_end_of_turn(site, session, sent["id"])) == "It said: 1"


async def test_a_result_of_a_custom_tool_reaches_the_model_through_the_next_server(site: Site) -> None:
    key = new_id("req")
    async with site.serving(Fuse("after", "user.custom_tool_result")) as server:
        session = await site.session(WEATHER)
        call = await blocked(site, session, "weather")
        result: JSON = {
            "type": "user.custom_tool_result",
            "custom_tool_use_id": call,
            "content": [{"type": "text", "text": "sunny"}],
        }
        site.armed.touch()
        with pytest.raises(httpx2.TransportError):
            await site.send(session, result, key=key)
        await server.died()
    async with site.serving():
        (sent,) = await site.send(session, result, key=key)
        assert answer_in(await until_end_of_turn(site, session, sent["id"])) == "It said: sunny"
        assert len(of_type(site.rows(session), "user.custom_tool_result")) == 1


async def test_an_interrupt_is_carried_out_by_the_next_server(site: Site) -> None:
    async with site.serving(Fuse("after", "user.interrupt")) as server:
        session = await site.session()
        await site.say(session, f"run: {HOLD}")
        await site.until_dispatched(session)
        await site.wait_for_file(session, "begun")
        site.armed.touch()
        with pytest.raises(httpx2.TransportError):
            await site.send(session, {"type": "user.interrupt"})
        await server.died()
    async with site.serving():
        await until_end_of_turn(site, session, "row_1")
        (result,) = of_type(site.rows(session), "agent.tool_result")
        assert texts(result.body) == INTERRUPTED.text
        # The command is dead, and its shell with it.
        assert await site.ask(session, "run: true") == "It said: bash: bash session terminated; restart required"
        assert await site.count(session) == ["x"]


async def test_a_message_that_waits_behind_a_command_is_answered_by_the_next_server(site: Site) -> None:
    async with site.serving() as server:
        session = await site.session()
        await site.say(session, f"run: {HOLD}")
        await site.until_dispatched(session)
        await site.wait_for_file(session, "begun")
        waiting = await site.say(session, "and hello")
        await server.kill()
    async with site.serving():
        await site.make_file(session, "go")
        events = await until_end_of_turn(site, session, waiting["id"])
        assert answer_in(events) == "and hello"
        assert waiting["id"] in [event["id"] for event in await site.listed(session)]
        assert await site.count(session) == ["x"]


async def test_of_two_calls_the_one_under_way_is_joined_and_the_one_behind_it_is_run(site: Site) -> None:
    async with site.serving() as server:
        session = await site.session()
        await site.say(session, f"both: {HOLD} ++ echo y >> count; cat count")
        await site.until_dispatched(session)
        await site.wait_for_file(session, "begun")
        await server.kill()
    assert len(of_type(site.rows(session), "internal.dispatch")) == 1
    async with site.serving():
        await site.make_file(session, "go")
        assert answer_in(await until_end_of_turn(site, session, "row_1")) == "It said: x\ny"
        results = [texts(row.body) for row in of_type(site.rows(session), "agent.tool_result")]
        assert results == ["1", "x\ny"]
