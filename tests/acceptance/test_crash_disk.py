"""A disk that is full, read-only or failing under a running session: nothing is acknowledged, and it goes on after."""

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from galley_server.demo.transcript import JSON
from galley_server.ids import new_id

from tests.acceptance.crash_kit import PATIENCE_S, Server, Site, answer_in, assert_whole, of_type, open_site, texts
from tests.acceptance.server_process import refused

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

HOLD = "run: echo x >> count; touch begun; until [ -e go ]; do sleep 0.02; done; wc -l < count"
MOST = 500
# What SQLite needs to read beside a writer, and the server to say what is wrong.
ENOUGH_TO_READ = 64 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the home; what sandboxes write is not on it."""
    disk = tmp_path / "disk"
    home = disk / "home"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk; the same fault is also made without one, by a limit on files")
    home.mkdir(mode=0o700)
    (tmp_path / "sandboxes").mkdir(mode=0o700)
    (home / "sandboxes").symlink_to(tmp_path / "sandboxes")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, "bubblewrap") as site:
        yield site


@pytest.fixture
async def small_site(tmp_path: Path, small_disk: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, "bubblewrap", home=small_disk / "home") as site:
        yield site


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            return ballast
    return ballast


def limit_files(server: Server, size: int) -> None:
    """Have the system refuse whatever the server writes to a file behind `size`."""
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (min(size, hard) if hard >= 0 else size, hard))


async def holding(site: Site) -> str:
    session = await site.session()
    await site.say(session, HOLD)
    await site.until_dispatched(session)
    await site.wait_for_file(session, "begun")
    return session


def message(text: str) -> JSON:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


async def send_until_refused(site: Site, session: str) -> tuple[list[str], str]:
    """Send until the store refuses; return what was acknowledged, and the key of the message that was not."""
    acknowledged: list[str] = []
    for number in range(MOST):
        key, text = new_id("req"), f"word {number}"
        answer = await site.http.post(
            f"/v1/sessions/{session}/events", json={"events": [message(text)]}, headers={"idempotency-key": key}
        )
        if answer.status_code == 503:
            error = answer.json()["error"]
            assert error["type"] == "api_error"
            assert error["message"].startswith("nothing was stored: ")
            return acknowledged, key
        assert answer.status_code == 200, answer.text
        acknowledged.append(text)
    raise AssertionError(f"{MOST} messages were stored on a full disk")


async def refused_to_the_runner(site: Site, session: str) -> None:
    """Wait until the brain, too, has failed to store something of this session."""
    async with asyncio.timeout(PATIENCE_S):
        while f"{session}: the store is unavailable" not in site.said():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def assert_recovered(site: Site, busy: str, other: str, acknowledged: list[str], key: str) -> None:
    (sent,) = await site.send(other, message("word last"), key=key)
    await site.until(other, "session.status_idle", after=sent["id"])
    assert [texts(row.body) for row in of_type(site.rows(other), "user.message")] == [*acknowledged, "word last"]
    assert answer_in(await site.until(busy, "session.status_idle")) == "It said: 1"
    assert await site.count(busy) == ["x"]
    for session in (busy, other):
        rows = site.rows(session)
        assert_whole(rows)
        assert site.proven(session) == len(rows)


async def test_on_a_full_disk_nothing_is_acknowledged_and_sessions_go_on_when_there_is_room(
    small_site: Site, small_disk: Path
) -> None:
    site = small_site
    async with site.serving():
        busy, other = await holding(site), await site.session()
        ballast = await asyncio.to_thread(fill, small_disk)
        acknowledged, key = await send_until_refused(site, other)
        stored = len(site.rows(busy))
        await site.make_file(busy, "go")
        await refused_to_the_runner(site, busy)
        assert len(site.rows(busy)) == stored
        assert (await site.http.get(f"/v1/sessions/{busy}")).json()["status"] == "running"
        ballast.unlink()
        await assert_recovered(site, busy, other, acknowledged, key)


async def test_while_files_cannot_be_written_nothing_is_acknowledged_and_sessions_go_on_when_they_can(
    site: Site,
) -> None:
    async with site.serving() as server:
        busy, other = await holding(site), await site.session()
        limit_files(server, ENOUGH_TO_READ)
        acknowledged, key = await send_until_refused(site, other)
        assert acknowledged == []
        await site.make_file(busy, "go")
        await refused_to_the_runner(site, busy)
        assert of_type(site.rows(busy), "agent.tool_result") == []
        limit_files(server, resource.RLIM_INFINITY)
        await assert_recovered(site, busy, other, acknowledged, key)


async def test_a_home_that_came_back_read_only_is_told_and_its_session_goes_on_when_it_is_writable(
    small_site: Site, small_disk: Path
) -> None:
    site = small_site
    async with site.serving() as server:
        session = await holding(site)
        await server.kill()
    before = site.rows(session)
    await site.make_file(session, "go")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)  # noqa: ASYNC221
    status, said = await refused(site.home, "--port", "0")
    assert status in (1, 2)
    assert len(said.splitlines()) == 1
    assert str(site.home) in said or "galley.db" in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)  # noqa: ASYNC221
    assert site.rows(session) == before
    async with site.serving():
        assert answer_in(await site.until(session, "session.status_idle")) == "It said: 1"
        assert await site.count(session) == ["x"]
