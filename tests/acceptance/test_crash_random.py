"""Servers and sandboxes killed at random instants, round after round, under sessions that work all the time."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from galley_server.ids import new_id

from tests.acceptance.crash_kit import DriverName, Row, Site, assert_whole, of_type, open_site, texts

pytestmark = pytest.mark.anyio

SESSIONS: Final = 3
LONGEST_LIFE_S: Final = 1.5
MAY_HAVE_RUN: Final = "interrupted, may have run"
DID_NOT_RUN: Final = "interrupted, did not run"


class Talker:
    """One session and its client, which goes on whatever happens: it repeats what was not acknowledged, and resumes
    its stream behind the last event it saw."""

    def __init__(self, site: Site, session: str) -> None:
        self.site = site
        self.session = session
        self.seen: list[dict[str, Any]] = []
        self.acknowledged: dict[str, str] = {}
        self.turns = 0
        self.ending = False

    async def talk(self) -> None:
        while not self.ending:
            await self.turn()

    async def turn(self) -> None:
        self.turns += 1
        text = f"run: echo t{self.turns} >> count; sleep 0.0{self.turns % 10}; tail -n 1 count"
        key, sent = new_id("req"), None
        while True:
            with suppress(httpx2.TransportError):
                if sent is None:
                    sent = (await self.site.say(self.session, text, key=key))["id"]
                    self.acknowledged[sent] = text
                await self._read_to_idle_after(sent)
                return
            await asyncio.sleep(0.02)  # no server answers: it is being started

    async def _read_to_idle_after(self, sent: str) -> None:
        cursor = next((event["row"] for event in reversed(self.seen) if event["row"]), "row_1")
        async with self.site.listening(self.session, after=cursor) as events:
            async for event in events:
                self.seen.append(event)
                known = any(one["id"] == sent and one.get("processed_at") for one in self.seen)
                if event["type"] == "session.status_idle" and known:
                    return
        raise httpx2.ReadError("the stream ended")


def dispatched(rows: Sequence[Row]) -> dict[str, str]:
    """Which sandbox each turn's command was sent to."""
    commands = {row.id: row.body["input"]["command"] for row in of_type(rows, "agent.tool_use")}
    return {
        commands[row.body["tool_use_id"]].split()[1]: row.body["incarnation"]
        for row in of_type(rows, "internal.dispatch")
    }


def told(rows: Sequence[Row]) -> dict[str, str]:
    """What the model was told of each turn's command."""
    commands = {row.id: row.body["input"]["command"] for row in of_type(rows, "agent.tool_use")}
    return {commands[row.body["tool_use_id"]].split()[1]: texts(row.body) for row in of_type(rows, "agent.tool_result")}


async def assert_no_effect_twice_and_none_lost(talker: Talker) -> None:
    site, session = talker.site, talker.session
    rows = site.rows(session)
    assert_whole(rows)
    assert site.proven(session) == len(rows)
    messages = {row.id: texts(row.body) for row in of_type(rows, "user.message")}
    assert messages == talker.acknowledged
    results, places = told(rows), dispatched(rows)
    assert set(results) == {f"t{number}" for number in range(1, talker.turns + 1)}
    for turn, said in results.items():
        if turn in places:
            assert said.endswith(turn) or said.startswith((MAY_HAVE_RUN, DID_NOT_RUN)), said
        else:  # killed while it was being made for this turn
            assert "could not start a sandbox" in said or "The sandbox was lost" in said, said
    # The last sandbox still has its file. Each turn sent there is in it at most once, and once if its result came.
    last = of_type(rows, "internal.dispatch")[-1].body["incarnation"]
    counted = Counter(await site.count(session))
    assert max(counted.values()) == 1
    assert set(counted) <= {turn for turn, place in places.items() if place == last}
    assert set(counted) >= {turn for turn, place in places.items() if place == last and results[turn].endswith(turn)}
    # What the client saw on its broken and resumed streams is what there is, each row once and in order.
    cursors = [int(event["row"].removeprefix("row_")) for event in talker.seen]
    assert cursors == sorted(set(cursors))
    shown = [row.seq for row in rows if not row.type.startswith("internal.")]
    assert set(cursors) >= set(shown)


async def lose_a_sandbox(site: Site, talkers: Sequence[Talker], chance: random.Random) -> None:
    victim = chance.choice(talkers)
    if len(await site.sandboxes(victim.session)) == 1:
        await chance.choice([site.kill_hand, site.remove_sandbox])(victim.session)


@pytest.mark.parametrize(
    ("driver", "rounds"),
    [
        pytest.param("bubblewrap", 25, marks=pytest.mark.bubblewrap),
        pytest.param("docker", 10, marks=pytest.mark.docker),
    ],
)
async def test_sessions_survive_whatever_is_killed_whenever(tmp_path: Path, driver: DriverName, rounds: int) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")  # noqa: T201  # shown with a failure: `random.Random(seed)` gives the same instants again
    chance = random.Random(seed)
    async with open_site(tmp_path, driver) as site:
        async with site.serving():
            talkers = [Talker(site, await site.session()) for _ in range(SESSIONS)]
        async with asyncio.timeout(60 + 20 * rounds), asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(talker.talk()) for talker in talkers]
            for _ in range(rounds):
                victims = chance.choices(["server", "sandbox", "both"], weights=[6, 2, 2])[0]
                async with site.serving() as server:
                    await asyncio.sleep(chance.uniform(0, LONGEST_LIFE_S))
                    if victims == "sandbox":
                        await lose_a_sandbox(site, talkers, chance)
                        await asyncio.sleep(chance.uniform(0, LONGEST_LIFE_S))
                    await server.kill()
                if victims == "both":
                    await lose_a_sandbox(site, talkers, chance)
            async with site.serving():
                for talker in talkers:
                    talker.ending = True
                await asyncio.wait(talking)  # to the end of the turn that each is in
        async with site.serving():
            for talker in talkers:
                await talker.turn()
                await assert_no_effect_twice_and_none_lost(talker)
                await site.archive(talker.session)
            assert [found for found in await site.sandboxes() if found.sandbox.session_id != "probe"] == []
