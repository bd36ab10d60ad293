"""A server that dies at any boundary of a turn is continued by the next one, and no tool has its effect twice."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from galley_server.ids import new_id

from tests.acceptance.crash_kit import (
    BOTH_DRIVERS,
    MOVES_WITHIN_S,
    Fuse,
    Row,
    Site,
    answer_in,
    assert_whole,
    moved,
    of_type,
    open_site,
    texts,
)

pytestmark = pytest.mark.anyio

ADD_ONE = "run: echo x >> count; wc -l < count"
COLD = [  # a session's first call: its sandbox is made for it
    Fuse("before", "user.message"),
    Fuse("after", "user.message"),
    Fuse("before", "span.model_request_start"),
    Fuse("after", "span.model_request_start"),
    Fuse("before", "agent.tool_use"),
    Fuse("after", "agent.tool_use"),
    Fuse("before", "internal.dispatch"),
    Fuse("after", "internal.dispatch"),
]
WARM = [  # a later call, which may be dispatched as it is logged
    Fuse("after", "agent.tool_use"),
    Fuse("before", "agent.tool_result"),
    Fuse("after", "agent.tool_result"),
    Fuse("before", "agent.message"),
    Fuse("after", "agent.message"),
    Fuse("before", "session.status_idle"),
    Fuse("after", "session.status_idle"),
]


def named(fuse: Fuse) -> str:
    return f"{fuse.when} {fuse.row_type}"


@pytest.fixture(params=BOTH_DRIVERS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, request.param) as site:
        yield site


async def say_until_killed(site: Site, session: str, text: str, key: str) -> None:
    try:
        await site.say(session, text, key=key)
    except httpx2.TransportError:
        return


async def assert_one_effect(site: Site, session: str, before: list[Row]) -> None:
    rows = site.rows(session)
    assert rows[: len(before)] == before
    assert_whole(rows)
    assert site.proven(session) == len(rows)
    assert await site.count(session) == ["x"]
    await site.until_acknowledged(session, [row.id for row in of_type(rows, "agent.tool_use")])
    # The session goes on in the same sandbox, with a transcript that the strict endpoint takes.
    assert await site.ask(session, "run: wc -l < count") == "It said: 1"
    await site.archive(session)
    assert await site.sandboxes(session) == []


async def continued(site: Site, session: str, before: list[Row], text: str, key: str) -> None:
    """Start the next server; it must move what the last one left, and a client may repeat what it is unsure of."""
    unfinished = before[-1].type != "session.status_idle" and len(of_type(before, "user.message")) > 0
    async with site.serving() as server:
        if unfinished:
            assert await moved(site, session, beyond=len(before), server=server) < MOVES_WITHIN_S
        sent = await site.say(session, text, key=key)
        events = await site.until(session, "session.status_idle", after=sent["id"])
        assert answer_in(events) == "It said: 1"
        assert [texts(row.body) for row in of_type(site.rows(session), "user.message")].count(text) == 1
        await assert_one_effect(site, session, before)


@pytest.mark.parametrize("fuse", COLD, ids=named)
async def test_a_first_call_has_its_effect_once_though_the_server_died(site: Site, fuse: Fuse) -> None:
    key = new_id("req")
    async with site.serving(fuse) as server:
        session = await site.session()
        site.armed.touch()
        await say_until_killed(site, session, ADD_ONE, key)
        await server.died()
    await continued(site, session, site.rows(session), ADD_ONE, key)


@pytest.mark.parametrize("fuse", WARM, ids=named)
async def test_a_later_call_has_its_effect_once_though_the_server_died(site: Site, fuse: Fuse) -> None:
    key = new_id("req")
    async with site.serving(fuse) as server:
        session = await site.session()
        assert await site.ask(session, "run: echo warm") == "It said: warm"
        site.armed.touch()
        await say_until_killed(site, session, ADD_ONE, key)
        await server.died()
    await continued(site, session, site.rows(session), ADD_ONE, key)
