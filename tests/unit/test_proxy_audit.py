"""The audit log: bounded, ordered, shared, searchable, and no place for a secret."""

import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from galley_vault_proxy.audit import Audit, AuditLine, AuditQuery
from galley_vault_proxy.audit_files import AuditFiles, Place
from galley_vault_proxy.errors import ConfigError, InvalidRequest, Unavailable

pytestmark = pytest.mark.anyio

SMALL = 64 * 1024


@pytest.fixture
async def audit(tmp_path: Path) -> AsyncIterator[Audit]:
    async with Audit.open(tmp_path / "audit", max_bytes=SMALL) as opened:
        yield opened


def line(number: int, *, deny: bool = False) -> AuditLine:
    return AuditLine(
        "mcp.tool", "deny" if deny else "allow", session_id=f"sesn_{number % 2}", tool=f"tool_{number}", bytes=number
    )


async def test_a_recorded_line_is_found_at_once(audit: Audit) -> None:
    audit.record(line(1))
    (found,) = (await audit.query(AuditQuery())).data
    assert found["tool"] == "tool_1"
    assert found["at"]


async def test_what_is_not_set_is_not_written(audit: Audit) -> None:
    audit.record(AuditLine("grant.mint", "allow", who="service"))
    (found,) = (await audit.query(AuditQuery())).data
    assert found.keys() == {"id", "at", "action", "decision", "who"}


async def test_every_filter_narrows(audit: Audit) -> None:
    for number in range(20):
        audit.record(line(number, deny=number % 5 == 0))
    audit.record(AuditLine("mcp.tool", "allow", session_id="sesn_0", grant_id="grant_7"))
    denied = await audit.query(AuditQuery(session_id="sesn_0", decision="deny"))
    assert [found["tool"] for found in denied.data] == ["tool_0", "tool_10"]
    assert len((await audit.query(AuditQuery(grant_id="grant_7"))).data) == 1
    assert (await audit.query(AuditQuery(grant_id="allow"))).data == ()


async def test_pages_join_without_gap_or_double(audit: Audit) -> None:
    for number in range(50):
        audit.record(line(number))
    seen, after = [], None
    while True:
        page = await audit.query(AuditQuery(session_id="sesn_1", after=after, limit=7))
        seen += [found["tool"] for found in page.data]
        after = page.next_after
        if not page.has_more:
            break
    assert seen == [f"tool_{number}" for number in range(1, 50, 2)]


async def test_what_came_after_the_last_page_is_the_next_page(audit: Audit) -> None:
    audit.record(line(1))
    last = (await audit.query(AuditQuery())).next_after
    assert (await audit.query(AuditQuery(after=last))).data == ()
    audit.record(line(3))
    assert [found["tool"] for found in (await audit.query(AuditQuery(after=last))).data] == ["tool_3"]


@pytest.mark.parametrize("after", ["x", "aud_1", "../lock", "aud_00000001" + "0" * 13])
async def test_a_cursor_that_is_no_line_is_refused(audit: Audit, after: str) -> None:
    with pytest.raises(InvalidRequest, match="after"):
        await audit.query(AuditQuery(after=after))


async def test_the_oldest_goes_when_the_bound_is_reached(audit: Audit, tmp_path: Path) -> None:
    for number in range(3000):
        audit.record(line(number))
        if number % 500 == 0:
            await audit.flush()
    found = (await audit.query(AuditQuery(limit=10_000))).data
    assert found[-1]["tool"] == "tool_2999"
    assert found[0]["tool"] != "tool_0"
    assert sum(file.stat().st_size for file in (tmp_path / "audit").iterdir()) <= SMALL + 8 * 300


async def test_a_cursor_whose_line_is_gone_goes_on_with_the_oldest(audit: Audit) -> None:
    audit.record(line(0))
    first = (await audit.query(AuditQuery())).next_after
    for number in range(1, 3000):
        audit.record(line(number))
        if number % 500 == 0:
            await audit.flush()
    assert (await audit.query(AuditQuery(after=first, limit=1))).data


async def test_only_the_owner_can_read_it(audit: Audit, tmp_path: Path) -> None:
    audit.record(line(1))
    await audit.flush()
    for path in (tmp_path / "audit").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700


async def test_two_processes_write_one_log(tmp_path: Path) -> None:
    async with (
        Audit.open(tmp_path / "audit", max_bytes=1 << 20) as one,
        Audit.open(tmp_path / "audit", max_bytes=1 << 20) as other,
    ):
        for number in range(100):
            (one if number % 3 else other).record(line(number))
        await other.flush()
        found = (await one.query(AuditQuery(limit=1000))).data
        assert sorted(str(entry["tool"]) for entry in found) == sorted(f"tool_{number}" for number in range(100))
        assert [entry["id"] for entry in found] == sorted(str(entry["id"]) for entry in found)


async def test_lines_outlive_the_process(tmp_path: Path) -> None:
    async with Audit.open(tmp_path, max_bytes=1 << 20) as audit:
        audit.record(line(1))
    async with Audit.open(tmp_path, max_bytes=1 << 20) as audit:
        assert len((await audit.query(AuditQuery())).data) == 1


def test_half_a_line_that_a_dying_writer_left_is_cut_off(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, max_bytes=1 << 20)
    files.append([{"n": 1}])
    with (tmp_path / "00000001.jsonl").open("ab") as file:
        file.write(b'{"id":"aud_')
    files.append([{"n": 2}])
    assert [json.loads(text)["n"] for text in files.scan(None)] == [1, 2]


def test_an_id_is_the_place_of_its_line(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, max_bytes=1 << 20)
    files.append([{"n": 1}, {"text": "ü"}, {"n": 3}])
    lines = [json.loads(text) for text in files.scan(None)]
    assert [json.loads(text)["n"] for text in files.scan(Place.of(lines[1]["id"]))] == [3]


SECRETS = [
    "galley1.eyJpZCI6ImdyYW50XzEifQ.c2lnbmF0dXJl",
    "hvs.CAESIJlU9JMYEhOPYv4igdhm9PnZDrabYTobQ4Ymnlq1qY",
    "s.iyNUhq8Ov4hIAx6snw5mB2nL",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefgh",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_token_is_blanked_wherever_it_stands(secret: str) -> None:
    everywhere = AuditLine(
        "mcp.tool",
        "deny",
        reason=secret,
        session_id=secret,
        grant_id=secret,
        event_id=secret,
        server=secret,
        tool=f"x {secret} y",
        host=secret,
        method=secret,
        credential_id=secret,
    )
    assert secret[-20:] not in json.dumps(everywhere.plain())


def test_texts_are_cut_and_ids_are_ids() -> None:
    plain = AuditLine("mcp.tool", "allow", reason="Said So!", event_id="a b\n", tool="x" * 10_000).plain()
    assert plain["reason"] == "unspecified"
    assert plain["event_id"] == "invalid"
    assert plain["tool"] == "x" * 256


async def test_a_line_break_in_a_name_is_no_line_break_in_the_log(audit: Audit) -> None:
    audit.record(AuditLine("mcp.tool", "deny", tool='x"}\n{"decision":"allow'))
    assert [found["decision"] for found in (await audit.query(AuditQuery())).data] == ["deny"]


async def test_half_a_surrogate_does_not_stop_the_log(audit: Audit) -> None:
    audit.record(AuditLine("mcp.tool", "deny", tool="\ud800"))
    assert len((await audit.query(AuditQuery())).data) == 1


async def test_while_it_cannot_be_written_it_is_not_ready_and_then_recovers(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    async with Audit.open(directory, max_bytes=1 << 20) as audit:
        # Root may write anywhere, so the way is blocked by what stands there.
        (directory / "00000001.jsonl").mkdir()
        audit.record(line(1))
        with pytest.raises(Unavailable, match="cannot be written"):
            await audit.flush()
        with pytest.raises(Unavailable):
            await audit.ready()
        os.rmdir(directory / "00000001.jsonl")
        while True:
            try:
                await audit.flush()
                break
            except Unavailable:
                await audit.progress()
        await audit.ready()
        assert len((await audit.query(AuditQuery())).data) == 1


async def test_when_too_much_waits_nothing_more_is_taken(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    async with Audit.open(directory, max_bytes=1 << 20) as audit:
        (directory / "00000001.jsonl").mkdir()
        for number in range(8192):
            audit.record(line(number))
        with pytest.raises(Unavailable, match="nothing is let through"):
            audit.record(line(8192))
        os.rmdir(directory / "00000001.jsonl")


async def test_a_directory_that_cannot_be_had_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(ConfigError, match="audit"):
        async with Audit.open(tmp_path / "audit", max_bytes=1 << 20):
            pass
