"""Which grants live: at once, after a restart, and for every process that shares the state."""

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from galley_vault_proxy.errors import ConfigError, GrantRefused, InvalidRequest, NotFound, StoreUnavailable, Unavailable
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.narrow import narrow
from galley_vault_proxy.grant.registry import NoGate, Registry, SessionGate
from galley_vault_proxy.grant.token import ServerRule, mint
from galley_vault_proxy.state import Schema, State

from tests.integration.proxy_kit import GRANT_KEY, a_grant

pytestmark = pytest.mark.anyio


class Gate:
    """The part of a secret store that sessions pass: it notes what it is told, and can refuse to close."""

    def __init__(self) -> None:
        self.sessions: dict[str, tuple[str, ...]] = {}
        self.closed: list[str] = []
        self.sealed = False
        self.changed = asyncio.Condition()

    async def open_session(self, session_id: str, vault_ids: Collection[str], expires_at: datetime) -> None:
        if "bad" in vault_ids:
            raise InvalidRequest("bad is no vault")
        self.sessions[session_id] = tuple(vault_ids)

    async def close_session(self, session_id: str) -> None:
        if self.sealed:
            raise StoreUnavailable("sealed")
        self.sessions.pop(session_id, None)
        async with self.changed:
            self.closed.append(session_id)
            self.changed.notify_all()

    async def was_closed(self, session_id: str) -> None:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: session_id in self.closed)


class Clock:
    """The real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def reason(registry: Registry, token: str, tunnel: str | None = None) -> str:
    with pytest.raises(GrantRefused) as caught:
        await registry.lookup(token, tunnel)
    return caught.value.reason


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@asynccontextmanager
async def registry(path: Path, gate: SessionGate | None = None, clock: Clock | None = None) -> AsyncIterator[Registry]:
    """A registry on a state of its own: what another process has, or this one after a restart."""
    async with State.open(path, [rows.SCHEMA]) as state:
        opened = Registry.open(state, key=GRANT_KEY, gate=gate or NoGate(), clock=clock or Clock())
        async with opened as found:
            yield found


async def held(registry: Registry, token: str, begun: asyncio.Event) -> str:
    """Hold the grant until it ends, and say why it ended."""
    grant = await registry.lookup(token, None)
    try:
        async with registry.hold(grant):
            begun.set()
            await asyncio.Event().wait()
    except GrantRefused as error:
        return error.reason
    return "went on"


async def end_of(registry: Registry, token: str, revoke: Callable[[], Awaitable[object]]) -> tuple[str, float]:
    """Why an open stream ended after `revoke`, and how long after."""
    begun, loop = asyncio.Event(), asyncio.get_running_loop()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        stream = tasks.create_task(held(registry, token, begun))
        await begun.wait()
        start = loop.time()
        await revoke()
        why = await stream
    return why, loop.time() - start


async def test_an_issued_grant_counts_and_another_does_not(path: Path) -> None:
    async with registry(path) as one:
        token = await one.issue(a_grant("sesn_1"))
        assert (await one.lookup(token, None)).session_id == "sesn_1"
        assert await reason(one, mint(GRANT_KEY, a_grant("sesn_1"))) == "unknown"
        assert await reason(one, mint(b"x" * 32, a_grant("sesn_1"))) == "forged"


async def test_a_stolen_token_fails_through_another_tunnel(path: Path) -> None:
    async with registry(path) as one:
        token = await one.issue(a_grant(tunnel="tun_a"))
        await one.lookup(token, "tun_a")
        assert await reason(one, token, "tun_b") == "tunnel"
        assert await reason(one, token, None) == "tunnel"
        assert await reason(one, narrow(token, expires_in=5), "tun_b") == "tunnel"


async def test_a_bearer_token_counts_through_any_tunnel(path: Path) -> None:
    async with registry(path) as one:
        assert (await one.lookup(await one.issue(a_grant()), "tun_b")).tunnel is None


async def test_revoking_a_grant_revokes_what_was_narrowed_from_it(path: Path) -> None:
    async with registry(path) as one:
        grant = replace(a_grant(), servers=(ServerRule("a", "https://a.example"),))
        token = await one.issue(grant)
        child = narrow(token, servers=["a"], expires_in=60)
        other = await one.issue(a_grant())
        await one.revoke_grant(grant.id)
        assert await reason(one, token) == await reason(one, child) == "revoked"
        await one.lookup(other, None)


async def test_revoking_a_session_revokes_all_its_grants_and_no_others(path: Path) -> None:
    async with registry(path) as one:
        tokens = [await one.issue(a_grant("sesn_1")) for _ in range(3)]
        other = await one.issue(a_grant("sesn_2"))
        closing = await one.revoke_session("sesn_1")
        assert len(closing.grant_ids) == 3
        assert [await reason(one, token) for token in tokens] == ["revoked"] * 3
        await one.lookup(other, None)


async def test_a_grant_stays_revoked_after_a_restart(path: Path) -> None:
    async with registry(path) as one:
        token, other, grant = await one.issue(a_grant()), await one.issue(a_grant("sesn_2")), a_grant("sesn_2")
        third = await one.issue(grant)
        await one.revoke_session("sesn_1")
        await one.revoke_grant(grant.id)
    async with registry(path) as again:
        assert await reason(again, token) == await reason(again, third) == "revoked"
        assert (await again.lookup(other, None)).session_id == "sesn_2"


async def test_without_its_state_every_grant_is_revoked(path: Path, tmp_path: Path) -> None:
    async with registry(path) as one:
        token = await one.issue(a_grant())
    async with registry(tmp_path / "other.db") as again:
        assert await reason(again, token) == "unknown"


async def test_a_session_that_is_not_listed_is_revoked(path: Path) -> None:
    async with registry(path) as one:
        token = await one.issue(a_grant())
    with closing_db(path) as db:
        db.execute("DELETE FROM sessions")
    async with registry(path) as again:
        assert await reason(again, token) == "revoked"


async def test_an_open_stream_ends_with_its_grant(path: Path) -> None:
    async with registry(path) as one:
        grant = a_grant()
        token = await one.issue(grant)
        why, seconds = await end_of(one, token, lambda: one.revoke_grant(grant.id))
        assert why == "revoked"
        assert seconds < 1


async def test_an_open_stream_of_a_narrowed_token_ends_with_the_session(path: Path) -> None:
    async with registry(path) as one:
        token = narrow(await one.issue(a_grant()), expires_in=60)
        why, seconds = await end_of(one, token, lambda: one.revoke_session("sesn_1"))
        assert why == "revoked"
        assert seconds < 1


async def test_a_stream_in_another_process_ends_within_a_second(path: Path) -> None:
    async with registry(path) as one, registry(path) as other:
        token = await one.issue(a_grant())
        why, seconds = await end_of(other, token, lambda: one.revoke_session("sesn_1"))
        assert why == "revoked"
        assert seconds < 1
        assert await reason(other, token) == "revoked"


async def test_a_stream_ends_when_its_token_expires(path: Path) -> None:
    async with registry(path) as one:
        token = narrow(await one.issue(a_grant()), expires_in=0.3)
        why, seconds = await end_of(one, token, anyio.lowlevel.checkpoint)
        assert why == "expired"
        assert seconds < 1


async def test_a_stream_says_that_its_grant_expired_and_was_not_revoked(path: Path) -> None:
    async with registry(path) as one:
        why, _ = await end_of(one, await one.issue(a_grant(seconds=0.4)), anyio.lowlevel.checkpoint)
        assert why == "expired"


async def test_a_grant_issued_by_another_process_counts_at_once(path: Path) -> None:
    gate = Gate()
    async with registry(path) as one, registry(path, gate) as other:
        token = await one.issue(replace(a_grant(), vault_ids=("vlt_1",)))
        await other.lookup(token, None)
        assert gate.sessions == {"sesn_1": ("vlt_1",)}


async def test_a_session_ended_by_another_process_is_closed_here_too(path: Path) -> None:
    gate = Gate()
    async with registry(path) as one, registry(path, gate) as other:
        await other.lookup(await one.issue(a_grant()), None)
        await one.revoke_session("sesn_1")
        await gate.was_closed("sesn_1")
        assert gate.sessions == {}


async def test_an_error_inside_a_held_grant_leaves_as_it_is(path: Path) -> None:
    async with registry(path) as one:
        grant = a_grant()
        await one.issue(grant)
        with pytest.raises(TimeoutError):
            async with one.hold(grant):
                raise TimeoutError
        with pytest.raises(GrantRefused):
            async with one.hold(a_grant()):
                pass


async def test_waiting_for_the_end_returns_at_the_end(path: Path) -> None:
    async with registry(path) as one:
        grant = a_grant()
        await one.issue(grant)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(one.ended(grant))
            await one.revoke_grant(grant.id)
            await ended


async def test_a_session_holds_the_vaults_of_all_its_grants(path: Path) -> None:
    gate = Gate()
    async with registry(path, gate) as one:
        await one.issue(replace(a_grant(), vault_ids=("vlt_1",)))
        await one.issue(replace(a_grant(), vault_ids=("vlt_2", "vlt_1")))
        assert gate.sessions == {"sesn_1": ("vlt_1", "vlt_2")}
    after = Gate()
    async with registry(path, after):
        assert after.sessions == gate.sessions


async def test_vaults_that_the_store_refuses_are_not_listed(path: Path) -> None:
    async with registry(path, Gate()) as one:
        with pytest.raises(InvalidRequest):
            await one.issue(replace(a_grant(), vault_ids=("bad",)))
    async with registry(path, Gate()) as again:
        assert list(again.sessions()) == []


async def test_a_sealed_store_does_not_keep_a_session_alive(path: Path) -> None:
    gate = Gate()
    async with registry(path, gate) as one:
        token = await one.issue(a_grant())
        gate.sealed = True
        closing = await one.revoke_session("sesn_1")
        assert not closing.settled
        assert await reason(one, token) == "revoked"
        with pytest.raises(StoreUnavailable):
            await one.issue(a_grant("sesn_1"))
        gate.sealed = False
        await one.issue(a_grant("sesn_1"))
        assert gate.closed == ["sesn_1"]


async def test_what_could_not_be_closed_is_closed_after_a_restart(path: Path) -> None:
    gate = Gate()
    gate.sealed = True
    async with registry(path, gate) as one:
        await one.issue(a_grant())
        await one.revoke_session("sesn_1")
    gate.sealed = False
    async with registry(path, gate) as again:
        await gate.was_closed("sesn_1")
        # A session that begins again would have to be closed first, if that were not settled.
        await again.issue(a_grant("sesn_1"))
        assert gate.closed == ["sesn_1"]


async def test_a_session_closes_when_its_last_grant_expires(path: Path) -> None:
    gate, clock = Gate(), Clock()
    async with registry(path, gate, clock) as one:
        token = await one.issue(a_grant(seconds=60))
        clock.ahead += timedelta(seconds=61)
        await gate.was_closed("sesn_1")
        assert await reason(one, token) == "expired"
        assert list(one.sessions()) == []


async def test_a_session_may_begin_again_and_its_old_grants_stay_revoked(path: Path) -> None:
    async with registry(path) as one:
        old = await one.issue(a_grant())
        await one.revoke_session("sesn_1")
        new = await one.issue(a_grant())
        await one.lookup(new, None)
        assert await reason(one, old) == "revoked"


async def test_ending_twice_is_ending(path: Path) -> None:
    async with registry(path) as one:
        grant = a_grant()
        await one.issue(grant)
        first, second = await one.revoke_grant(grant.id), await one.revoke_grant(grant.id)
        assert first.revoked_at == second.revoked_at
        assert (await one.revoke_session("sesn_never")).grant_ids == ()
        with pytest.raises(NotFound):
            await one.revoke_grant("grant_never")


async def test_what_is_long_gone_is_forgotten(path: Path) -> None:
    gate, clock = Gate(), Clock()
    async with registry(path, gate, clock) as one:
        grant = a_grant(seconds=10)
        await one.issue(grant)
        clock.ahead += timedelta(hours=3)
        await gate.was_closed("sesn_1")
        with pytest.raises(NotFound):
            await one.record(grant.id)


async def test_when_revocations_cannot_be_seen_no_grant_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with registry(path) as one:
        token = await one.issue(a_grant())
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 60)
        with pytest.raises(Unavailable, match="revoked grants"):
            await one.lookup(token, None)
        with pytest.raises(Unavailable):
            await one.ready()
        monkeypatch.undo()


async def test_at_rest_there_is_no_token_and_no_key(path: Path) -> None:
    async with registry(path) as one:
        tokens = [await one.issue(a_grant()) for _ in range(5)]
        narrowed = narrow(tokens[0], expires_in=60)
        await one.lookup(narrowed, None)
        kept = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for token in [*tokens, narrowed]:
        for text in token.split(".")[1:]:
            assert text.encode() not in kept
    assert GRANT_KEY not in kept


async def test_the_state_is_for_its_owner_alone(path: Path) -> None:
    async with registry(path) as one:
        await one.issue(a_grant())
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


async def test_a_state_of_a_newer_proxy_is_not_opened(path: Path) -> None:
    newer = Schema("registry", (*rows.SCHEMA.migrations, "CREATE TABLE more (id TEXT)"))
    async with State.open(path, [newer]):
        pass
    with pytest.raises(ConfigError, match="newer"):
        async with State.open(path, [rows.SCHEMA]):
            pass


async def test_a_file_that_is_no_state_is_not_opened(path: Path) -> None:
    await anyio.Path(path).write_bytes(b"something else, long enough to be no empty database at all" * 10)
    with pytest.raises(Unavailable, match="cannot be used"):
        async with State.open(path, [rows.SCHEMA]):
            pass


async def test_what_a_write_raises_leaves_nothing_behind(path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO closing VALUES ('x')")
        raise NotFound("no")

    async with State.open(path, [rows.SCHEMA]) as state:
        with pytest.raises(NotFound):
            await state.write(half)
        assert await state.read(rows.closing) == []


async def test_a_state_that_breaks_recovers_when_it_is_mended(path: Path) -> None:
    async with State.open(path, [rows.SCHEMA]) as state:
        await state.write(lambda db: rows.revoke_session(db, "a", Clock()()))
        with closing_db(path) as db:
            db.execute("ALTER TABLE closing RENAME TO away")
        with pytest.raises(Unavailable):
            await state.read(rows.closing)
        with closing_db(path) as db:
            db.execute("ALTER TABLE away RENAME TO closing")
        assert await state.read(rows.closing) == ["a"]


@contextmanager
def closing_db(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db
