"""What every store promises of rows: order, conflicts, leases, reading, large content, deletion."""

import asyncio
import json
from datetime import timedelta

import anyio.to_thread
import pytest
from galley_server.errors import AppendConflict, LeaseLost, NotFound
from galley_server.ids import new_id
from galley_server.log.row import Draft
from galley_server.log.store import Deleted, Grown, Notice

from tests.contract.store_kit import Kit, draft

pytestmark = pytest.mark.anyio


async def test_rows_are_numbered_from_one_without_a_gap(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft())
    await kit.store.append(session_id, [draft()])
    assert [row.seq for row in await kit.store.read(session_id)] == [1, 2, 3]


async def test_append_returns_what_read_returns(kit: Kit) -> None:
    session_id = new_id("sesn")
    written = await kit.store.append(session_id, [draft("a"), draft("b")], expected=0)
    assert written == await kit.store.read(session_id)


async def test_a_session_begins_only_with_expected_zero(kit: Kit) -> None:
    with pytest.raises(NotFound):
        await kit.store.append("sesn_unknown", [draft()])
    with pytest.raises(NotFound):
        await kit.store.append("sesn_unknown", [draft()], expected=3)


async def test_a_session_begins_only_once(kit: Kit) -> None:
    session_id = await kit.begin()
    with pytest.raises(AppendConflict):
        await kit.store.append(session_id, [draft()], expected=0)


@pytest.mark.parametrize("call", ["read", "head", "take_lease", "summary"])
async def test_an_unknown_session_is_not_found(kit: Kit, call: str) -> None:
    with pytest.raises(NotFound):
        await getattr(kit.store, call)("sesn_unknown")


async def test_append_refuses_a_stale_position(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft())
    with pytest.raises(AppendConflict) as refused:
        await kit.store.append(session_id, [draft()], expected=1)
    assert (refused.value.expected, refused.value.actual) == (1, 2)
    assert len(await kit.store.read(session_id)) == 2


async def test_append_at_the_right_position_goes_through(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft())
    (row,) = await kit.store.append(session_id, [draft()], expected=2)
    assert row.seq == 3


async def test_an_older_lease_is_lost_once_a_newer_is_taken(kit: Kit) -> None:
    session_id = await kit.begin()
    old = await kit.store.take_lease(session_id)
    new = await kit.store.take_lease(session_id)
    assert new > old
    with pytest.raises(LeaseLost):
        await kit.store.append(session_id, [draft()], fence=old)
    assert len(await kit.store.append(session_id, [draft()], fence=new)) == 1


async def test_a_lost_lease_is_said_before_a_conflict(kit: Kit) -> None:
    session_id = await kit.begin()
    old = await kit.store.take_lease(session_id)
    await kit.store.take_lease(session_id)
    with pytest.raises(LeaseLost):
        await kit.store.append(session_id, [draft()], fence=old, expected=99)


async def test_an_append_without_a_fence_needs_no_lease(kit: Kit) -> None:
    session_id = await kit.begin()
    await kit.store.take_lease(session_id)
    assert len(await kit.store.append(session_id, [draft()])) == 1


async def test_an_append_is_all_or_nothing(kit: Kit) -> None:
    session_id = await kit.begin()
    with pytest.raises(ValueError, match="cannot be summed up"):
        await kit.store.append(session_id, [draft(), draft("poison"), draft()])
    assert len(await kit.store.read(session_id)) == 1
    assert (await kit.store.verify(session_id)).head.seq == 1


async def test_an_append_that_fails_does_not_harm_its_neighbours(kit: Kit) -> None:
    sessions = [await kit.begin() for _ in range(20)]
    outcomes = await asyncio.gather(
        *(kit.store.append(one, [draft("poison" if n % 5 == 0 else "fine")]) for n, one in enumerate(sessions)),
        return_exceptions=True,
    )
    failed = [isinstance(outcome, ValueError) for outcome in outcomes]
    assert failed == [n % 5 == 0 for n in range(20)]
    assert [len(await kit.store.read(one)) for one in sessions] == [1 if bad else 2 for bad in failed]


async def test_concurrent_appends_to_one_session_stay_gap_free(kit: Kit) -> None:
    session_id = await kit.begin()
    appended = await asyncio.gather(*(kit.store.append(session_id, [draft(), draft()]) for _ in range(50)))
    seqs = sorted(row.seq for rows in appended for row in rows)
    assert seqs == list(range(2, 102))
    assert all(rows[1].seq == rows[0].seq + 1 for rows in appended)


async def test_of_appends_that_expect_the_same_position_one_wins(kit: Kit) -> None:
    session_id = await kit.begin()
    outcomes = await asyncio.gather(
        *(kit.store.append(session_id, [draft()], expected=1) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AppendConflict) for outcome in outcomes) == 9


async def test_an_empty_append_is_a_mistake(kit: Kit) -> None:
    with pytest.raises(ValueError, match="at least one"):
        await kit.store.append(await kit.begin(), [])


@pytest.mark.parametrize(
    ("asked", "seqs"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"after": 4}, [5, 6]),
        ({"after": 99}, []),
        ({"before": 3}, [1, 2]),
        ({"after": 1, "before": 5}, [2, 3, 4]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"newest_first": True, "limit": 2}, [6, 5]),
        ({"newest_first": True, "before": 5, "limit": 2}, [4, 3]),
        ({"types": {"b"}}, [2, 4, 6]),
        ({"types": {"a", "b"}, "after": 3}, [4, 5, 6]),
        ({"types": {"b"}, "newest_first": True, "limit": 2}, [6, 4]),
        ({"types": set()}, []),
        ({"types": {"none"}}, []),
    ],
)
async def test_read_returns_the_range_asked(kit: Kit, asked: dict[str, object], seqs: list[int]) -> None:
    await kit.begin(draft("b"), draft("a"))
    session_id = await kit.begin(*(draft("b" if n % 2 else "a") for n in range(6)))
    rows = await kit.store.read(session_id, **asked)  # type: ignore[arg-type]
    assert [row.seq for row in rows] == seqs


@pytest.mark.parametrize(
    "text",
    ["", "ünïcödé \u2028 \U0001f9d1", 'quotes " and \\ backslashes \\" ', "x" * 65_536, "y" * 65_537, 'é"\\' * 100_000],
)
async def test_a_body_comes_back_byte_for_byte(kit: Kit, text: str) -> None:
    item = draft(text=text)
    session_id = await kit.begin(item)
    assert [row.body for row in await kit.store.read(session_id)] == [item.body]
    await kit.store.verify(session_id)


async def test_the_same_large_content_is_stored_once(kit: Kit) -> None:
    image = "A" * 200_000
    first = await kit.begin(draft(text=image), draft(text=image))
    await kit.begin(draft(text=image))
    count, rows = await kit.database.read(
        lambda c: (
            c.execute("SELECT count(*), sum(length(content)) FROM blobs").fetchone(),
            c.execute("SELECT max(length(body)) FROM rows").fetchone(),
        )
    )
    assert count == (1, 200_000)
    assert rows[0] < 1_000
    assert json.loads((await kit.store.read(first))[1].body)["text"] == image


async def test_large_content_goes_with_the_last_session_that_uses_it(kit: Kit) -> None:
    image = "A" * 200_000
    first, second = await kit.begin(draft(text=image)), await kit.begin(draft(text=image))
    await kit.store.delete(first, caller="key")
    assert json.loads((await kit.store.read(second))[0].body)["text"] == image
    await kit.store.delete(second, caller="key")
    assert await kit.database.read(lambda c: c.execute("SELECT count(*) FROM blobs").fetchone()) == (0,)


async def test_time_never_goes_back_within_a_session(kit: Kit) -> None:
    session_id = await kit.begin()
    kit.clock.pass_by(-3600)
    await kit.store.append(session_id, [draft()])
    kit.clock.pass_by(7200)
    await kit.store.append(session_id, [draft()])
    first, second, third = (row.at for row in await kit.store.read(session_id))
    assert first == second
    assert third - first == timedelta(hours=1)


async def test_an_event_id_means_its_first_row(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft(id="sevt_twice"), draft(), draft(id="sevt_twice"))
    assert await kit.store.seq_of(session_id, "sevt_twice") == 2


async def test_an_event_of_another_session_is_not_found_here(kit: Kit) -> None:
    await kit.begin(draft(id="sevt_theirs"))
    assert await kit.store.seq_of(await kit.begin(), "sevt_theirs") is None


async def test_the_head_is_where_the_log_ends(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft())
    before = await kit.store.head(session_id)
    await kit.store.append(session_id, [draft()])
    epoch = await kit.store.take_lease(session_id)
    after = await kit.store.head(session_id)
    assert (before.seq, before.epoch, after.seq, after.epoch) == (2, 0, 3, epoch)
    assert before.hash != after.hash


async def test_a_deleted_session_leaves_a_tombstone_and_nothing_else(kit: Kit) -> None:
    session_id = await kit.begin(draft(), draft())
    head = await kit.store.head(session_id)
    stone = await kit.store.delete(session_id, caller="api key")
    assert (stone.session_id, stone.seq, stone.hash, stone.caller) == (session_id, 2, head.hash, "api key")
    assert stone.at == kit.clock.now
    with pytest.raises(NotFound):
        await kit.store.read(session_id)
    assert (await kit.store.verify(session_id)).tombstone == stone


async def test_a_deleted_session_never_returns(kit: Kit) -> None:
    session_id = await kit.begin()
    await kit.store.delete(session_id, caller="key")
    for expected in (None, 0, 1):
        with pytest.raises(NotFound):
            await kit.store.append(session_id, [draft()], expected=expected)
    with pytest.raises(NotFound):
        await kit.store.delete(session_id, caller="key")


async def test_deleting_a_session_leaves_the_others_alone(kit: Kit) -> None:
    gone, kept = await kit.begin(draft(), draft()), await kit.begin(draft(), draft())
    await kit.store.delete(gone, caller="key")
    assert len(await kit.store.read(kept)) == 2
    assert (await kit.store.verify(kept)).head.seq == 2


async def test_watchers_hear_of_every_commit_in_order(kit: Kit) -> None:
    heard: list[Notice] = []
    kit.store.watch(heard.append)
    session_id = await kit.begin()
    await asyncio.gather(*(kit.store.append(session_id, [draft()]) for _ in range(20)))
    await kit.store.delete(session_id, caller="key")
    *grown, last = heard
    assert [row.seq for notice in grown if isinstance(notice, Grown) for row in notice.rows] == list(range(1, 22))
    assert last == Deleted(session_id)


async def test_watchers_hear_nothing_of_an_append_that_failed(kit: Kit) -> None:
    session_id = await kit.begin()
    heard: list[Notice] = []
    kit.store.watch(heard.append)
    with pytest.raises(AppendConflict):
        await kit.store.append(session_id, [draft()], expected=9)
    assert heard == []


async def test_watchers_hear_of_an_append_whose_caller_was_cancelled(kit: Kit) -> None:
    session_id = await kit.begin()
    heard: list[Notice] = []
    kit.store.watch(heard.append)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(kit.store.append(session_id, [draft("hold")]))
        await anyio.to_thread.run_sync(kit.codec.held.wait, 5)
        task.cancel()
        kit.codec.release.set()
    assert task.cancelled()
    await kit.store.append(session_id, [draft()])
    assert [row.seq for notice in heard if isinstance(notice, Grown) for row in notice.rows] == [2, 3]


async def test_an_append_cancelled_before_it_began_is_not_made(kit: Kit) -> None:
    session_id = await kit.begin()
    async with asyncio.TaskGroup() as tasks:
        holder = tasks.create_task(kit.store.append(session_id, [draft("hold")]))
        await anyio.to_thread.run_sync(kit.codec.held.wait, 5)
        waiting = tasks.create_task(kit.store.append(session_id, [draft("never")]))
        await asyncio.sleep(0)  # it is queued now
        waiting.cancel()
        kit.codec.release.set()
        await holder
    assert [row.type for row in await kit.store.read(session_id)] == ["user.message", "hold"]


async def test_drafts_may_repeat_an_id(kit: Kit) -> None:
    item = Draft("sevt_again", "user.message", b"{}")
    session_id = await kit.begin(item, item)
    assert len(await kit.store.read(session_id)) == 2
