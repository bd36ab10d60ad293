"""Server, hand, container, or both die in the middle of something: what is known goes on, what is not known is said."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.crash_kit import (
    BOTH_DRIVERS,
    MOVES_WITHIN_S,
    Fuse,
    Site,
    answer_in,
    assert_whole,
    moved,
    of_type,
    open_site,
    read_until,
    texts,
)

pytestmark = pytest.mark.anyio

HOLD = "run: echo x >> count; touch begun; until [ -e go ]; do sleep 0.02; done; wc -l < count"
FRESH = "This is a fresh one."
MAY_HAVE_RUN = "interrupted, may have run: "

Loss = Callable[[Site, str], Awaitable[None]]


@pytest.fixture(params=BOTH_DRIVERS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, request.param) as site:
        yield site


def result_of_last_call(site: Site, session: str) -> tuple[str, bool]:
    last = of_type(site.rows(session), "agent.tool_result")[-1]
    return texts(last.body), bool(last.body.get("is_error"))


async def holding(site: Site) -> str:
    """A new session whose first command runs, has had its effect, and waits for the file `go`."""
    session = await site.session()
    await site.say(session, HOLD)
    await site.until(session, "agent.tool_use")
    await site.until_dispatched(session)
    await site.wait_for_file(session, "begun")
    return session


async def assert_goes_on_in_a_fresh_sandbox(site: Site, session: str) -> None:
    assert await site.ask(session, "run: cat count; echo on") == (
        f"It said: [The sandbox of earlier calls is gone, with its files and processes. {FRESH}]\n"
        "cat: count: No such file or directory\non"
    )
    await finish(site, session)


async def finish(site: Site, session: str) -> None:
    rows = site.rows(session)
    assert_whole(rows)
    assert site.proven(session) == len(rows)
    await site.archive(session)
    assert await site.sandboxes(session) == []


async def hand_dies(site: Site, session: str) -> None:
    await site.kill_hand(session)


async def container_goes(site: Site, session: str) -> None:
    await site.remove_sandbox(session)


LOSSES = [pytest.param(hand_dies, id="hand"), pytest.param(container_goes, id="container")]


async def test_a_server_killed_in_the_middle_of_an_answer_asks_for_it_again(site: Site) -> None:
    async with site.serving() as server:
        session = await site.session()
        async with site.listening(session, previews=True) as previews:
            await site.say(session, "slowly")
            await read_until(previews, "event_delta")
        await server.kill()
    before = site.rows(session)
    assert before[-1].type == "span.model_request_start"
    async with site.serving() as server:
        assert await moved(site, session, beyond=len(before), server=server) < MOVES_WITHIN_S
        events = await site.until(session, "session.status_idle")
        assert answer_in(events) == "one two three four five six"
        assert site.rows(session)[: len(before)] == before
        await finish(site, session)


async def test_a_command_that_outlives_its_server_is_joined_by_the_next_one(site: Site) -> None:
    async with site.serving() as server:
        session = await holding(site)
        await server.kill()
    before = site.rows(session)
    async with site.serving():
        await site.make_file(session, "go")
        assert answer_in(await site.until(session, "session.status_idle")) == "It said: 1"
        assert site.rows(session)[: len(before)] == before
        assert await site.count(session) == ["x"]
        await finish(site, session)


async def test_a_command_that_ended_while_there_was_no_server_has_its_result_fetched(site: Site) -> None:
    async with site.serving() as server:
        session = await holding(site)
        await server.kill()
    before = site.rows(session)
    await site.make_file(session, "go")
    async with site.serving() as server:
        assert await moved(site, session, beyond=len(before), server=server) < MOVES_WITHIN_S
        assert answer_in(await site.until(session, "session.status_idle")) == "It said: 1"
        assert await site.count(session) == ["x"]
        await finish(site, session)


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_sandbox_that_dies_under_a_command_is_told_and_replaced(site: Site, loss: Loss) -> None:
    async with site.serving():
        session = await holding(site)
        await loss(site, session)
        await site.until(session, "session.status_idle")
        said, is_error = result_of_last_call(site, session)
        assert said.startswith(MAY_HAVE_RUN)
        assert is_error
        await assert_goes_on_in_a_fresh_sandbox(site, session)


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_sandbox_that_dies_between_two_turns_is_replaced_and_the_model_is_told(site: Site, loss: Loss) -> None:
    async with site.serving():
        session = await site.session()
        await site.ask(session, "run: echo x >> count")
        await loss(site, session)
        await assert_goes_on_in_a_fresh_sandbox(site, session)


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_command_whose_server_and_sandbox_both_died_is_never_run_again(site: Site, loss: Loss) -> None:
    async with site.serving() as server:
        session = await holding(site)
        await server.kill()
    before = site.rows(session)
    await loss(site, session)
    async with site.serving() as server:
        assert await moved(site, session, beyond=len(before), server=server) < MOVES_WITHIN_S
        await site.until(session, "session.status_idle")
        said, is_error = result_of_last_call(site, session)
        assert said.startswith(MAY_HAVE_RUN)
        assert is_error
        await assert_goes_on_in_a_fresh_sandbox(site, session)


async def test_a_call_that_was_logged_and_not_yet_dispatched_runs_once_in_a_new_sandbox(site: Site) -> None:
    async with site.serving(Fuse("before", "internal.dispatch")) as server:
        session = await site.session()
        site.armed.touch()
        await site.say(session, "run: echo x >> count; wc -l < count")
        await server.died()
    await site.remove_sandbox(session)
    async with site.serving():
        assert answer_in(await site.until(session, "session.status_idle")) == "It said: 1"
        assert await site.count(session) == ["x"]
        await finish(site, session)


async def test_a_sandbox_of_a_session_that_was_archived_by_a_dying_server_is_removed_by_the_next(site: Site) -> None:
    async with site.serving(Fuse("after", "internal.archived")) as server:
        session = await site.session()
        await site.ask(session, "run: echo x >> count")
        site.armed.touch()
        with pytest.raises(httpx2.TransportError):
            await site.archive(session)
        await server.died()
    assert len(await site.sandboxes(session)) == 1
    async with site.serving(), asyncio.timeout(30):
        while await site.sandboxes(session):
            pass


async def test_a_stopped_server_ends_within_5_s_and_the_next_one_joins_its_commands(site: Site) -> None:
    async with site.serving() as server:
        session = await holding(site)
        other = await site.session()
        async with site.listening(session) as events, site.listening(other, previews=True) as previews:
            await site.say(other, "slowly")
            await read_until(previews, "event_delta")
            assert await server.stop() < 5
            with pytest.raises(AssertionError, match="the stream ended"):
                await read_until(events, "session.status_idle")
    await site.make_file(session, "go")
    async with site.serving():
        assert answer_in(await site.until(session, "session.status_idle")) == "It said: 1"
        assert answer_in(await site.until(other, "session.status_idle")) == "one two three four five six"
        assert await site.count(session) == ["x"]
        await finish(site, session)
