"""What every store promises of summaries: written with the rows, listed by page, rebuilt from the rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from galley_server.errors import NotFound
from galley_server.log.store import CreatedRange, SummaryPage, SummaryQuery

from tests.contract.store_kit import Kit, Tally, TallyCodec, draft, open_kit, setting

pytestmark = pytest.mark.anyio

EVERY = SummaryQuery(limit=100, order="asc")


def ids(page: SummaryPage[Tally]) -> list[str]:
    return [item.session_id for item in page.items]


async def begin_each_second(kit: Kit, count: int) -> list[str]:
    sessions = []
    for _ in range(count):
        sessions.append(await kit.begin())
        kit.clock.pass_by(1)
    return sessions


async def test_a_summary_has_every_row_in_it(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft())
    await kit.store.append(session_id, [setting(status="running"), draft()])
    summary = await kit.store.summary(session_id)
    assert (summary.rows, summary.status) == (4, "running")


async def test_a_summary_forgets_what_was_undone(kit: Kit) -> None:
    session_id = await kit.begin()
    await kit.store.append(session_id, [draft()])
    with pytest.raises(ValueError, match="cannot be summed up"):
        await kit.store.append(session_id, [setting(status="running"), draft("poison")])
    await kit.store.append(session_id, [draft()])
    summary = await kit.store.summary(session_id)
    assert (summary.rows, summary.status) == (3, "idle")


async def test_the_summary_of_a_deleted_session_is_gone(kit: Kit) -> None:
    session_id = await kit.begin()
    await kit.store.delete(session_id, caller="key")
    with pytest.raises(NotFound):
        await kit.store.summary(session_id)
    assert ids(await kit.store.summaries(EVERY)) == []


async def test_lists_are_sorted_by_creation(kit: Kit) -> None:
    sessions = await begin_each_second(kit, 4)
    await kit.store.append(sessions[0], [draft()])
    assert ids(await kit.store.summaries(EVERY)) == sessions
    assert ids(await kit.store.summaries(replace(EVERY, order="desc"))) == sessions[::-1]


async def test_sessions_of_one_instant_have_a_fixed_order(kit: Kit) -> None:
    sessions = [await kit.begin() for _ in range(10)]
    assert ids(await kit.store.summaries(EVERY)) == sorted(sessions)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_forward_and_back_show_each_session_once(kit: Kit, order: str) -> None:
    sessions = await begin_each_second(kit, 5) + [await kit.begin() for _ in range(3)]
    query = replace(EVERY, order=order, limit=3)  # type: ignore[arg-type]
    whole = ids(await kit.store.summaries(replace(query, limit=100)))
    forward: list[Sequence[str]] = []
    page = await kit.store.summaries(query)
    assert page.previous is None
    forward.append(ids(page))
    while page.next is not None:
        page = await kit.store.summaries(replace(query, after=page.next))
        forward.append(ids(page))
    assert [one for part in forward for one in part] == whole
    assert sorted(whole) == sorted(sessions)

    back: list[Sequence[str]] = [ids(page)]
    while page.previous is not None:
        page = await kit.store.summaries(replace(query, before=page.previous))
        back.append(ids(page))
    assert back[::-1] == forward


async def test_a_page_that_just_fits_has_no_next(kit: Kit) -> None:
    await begin_each_second(kit, 3)
    assert (await kit.store.summaries(replace(EVERY, limit=3))).next is None


async def test_lists_filter_by_status(kit: Kit) -> None:
    sessions = await begin_each_second(kit, 3)
    await kit.store.append(sessions[0], [setting(status="running")])
    await kit.store.append(sessions[2], [setting(status="terminated")])
    assert ids(await kit.store.summaries(replace(EVERY, statuses=frozenset({"running"})))) == [sessions[0]]
    either = frozenset({"running", "terminated"})
    assert ids(await kit.store.summaries(replace(EVERY, statuses=either))) == [sessions[0], sessions[2]]


async def test_lists_filter_by_agent_and_version(kit: Kit) -> None:
    one = await kit.begin(setting(agent_id="agent_a", agent_version=1))
    two = await kit.begin(setting(agent_id="agent_a", agent_version=2))
    await kit.begin(setting(agent_id="agent_b", agent_version=1))
    assert sorted(ids(await kit.store.summaries(replace(EVERY, agent_id="agent_a")))) == sorted([one, two])
    assert ids(await kit.store.summaries(replace(EVERY, agent_id="agent_a", agent_version=2))) == [two]


async def test_archived_sessions_are_listed_only_when_asked_for(kit: Kit) -> None:
    sessions = await begin_each_second(kit, 2)
    await kit.store.append(sessions[0], [setting(archived=True)])
    assert ids(await kit.store.summaries(EVERY)) == [sessions[1]]
    assert ids(await kit.store.summaries(replace(EVERY, include_archived=True))) == sessions


async def test_lists_filter_by_creation(kit: Kit) -> None:
    first = kit.clock.now
    sessions = await begin_each_second(kit, 3)
    second = (await kit.store.read(sessions[1]))[0].at
    assert ids(await kit.store.summaries(replace(EVERY, created=CreatedRange(gt=second)))) == sessions[2:]
    assert ids(await kit.store.summaries(replace(EVERY, created=CreatedRange(gte=second)))) == sessions[1:]
    assert ids(await kit.store.summaries(replace(EVERY, created=CreatedRange(lt=second)))) == sessions[:1]
    between = CreatedRange(gt=first, lte=second)
    assert ids(await kit.store.summaries(replace(EVERY, created=between))) == sessions[1:2]


async def test_rebuilt_summaries_are_the_fold_of_the_rows(kit: Kit) -> None:
    session_id = await kit.begin(setting(status="running"), draft())
    await kit.begin()
    before = (await kit.store.summaries(EVERY)).items
    await kit.database.write(lambda c: c.execute("UPDATE summaries SET status = 'wrong', data = x'7b7d'").rowcount)
    assert await kit.store.rebuild_summaries() == 2
    assert (await kit.store.summaries(EVERY)).items == before
    assert (await kit.store.summary(session_id)).rows == 2


async def test_a_new_version_of_the_codec_folds_anew(tmp_path: Path) -> None:
    path = tmp_path / "galley.db"
    async with open_kit(path) as kit:
        await kit.begin(draft(), draft())
    async with open_kit(path, TallyCodec(version=1)) as kit:
        assert kit.codec.folded == 0
    async with open_kit(path, TallyCodec(version=2)) as kit:
        assert kit.codec.folded == 2
    async with open_kit(path, TallyCodec(version=2)) as kit:
        assert kit.codec.folded == 0
