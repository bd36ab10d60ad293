"""Which sessions and grants live. What is not listed is revoked.

Written to `state.db` before it is acknowledged, and kept in memory for the doors. Processes that share a state learn
of each other's revocations by looking at the file a few times a second.
"""

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, Self

from galley_vault_proxy.errors import GrantRefused, NotFound, ProxyError, RequestError, Unavailable
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.rows import GrantRecord, Session
from galley_vault_proxy.grant.token import Grant, mint, verify
from galley_vault_proxy.state import State
from galley_vault_proxy.turns import Turns

_POLL_S: Final = 0.2
# A proxy that cannot see the others' revocations must not go on as if there were none.
_BLIND_S: Final = 5.0
_SWEEP_S: Final = 1.0
_RETRY_S: Final = 2.0
_LOOK_AGAIN_S: Final = 30.0
_KEPT: Final = timedelta(hours=1)
_TOKENS: Final = 4096

logger = logging.getLogger(__name__)


class SessionGate(Protocol):
    """The part of the secret store that must know which sessions live."""

    async def open_session(self, session_id: str, vault_ids: Collection[str], expires_at: datetime) -> None: ...

    async def close_session(self, session_id: str) -> None: ...


class NoGate:
    """For a proxy that has no secret store."""

    async def open_session(self, session_id: str, vault_ids: Collection[str], expires_at: datetime) -> None: ...

    async def close_session(self, session_id: str) -> None: ...


@dataclass(slots=True)
class _Live:
    """A grant in memory, and the scopes that end with it."""

    session_id: str
    expires_at: datetime
    scopes: set[asyncio.Timeout] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Closing:
    """What became of a session's end. `settled` False: its secret store has not confirmed yet; it is asked again."""

    session_id: str
    grant_ids: tuple[str, ...]
    settled: bool


class Registry:
    def __init__(self, state: State, key: bytes, gate: SessionGate, clock: Callable[[], datetime]) -> None:
        self._state = state
        self._key = key
        self._gate = gate
        self._clock = clock
        self._read: dict[bytes, Grant] = {}
        self._live: dict[str, _Live] = {}
        self._revoked: dict[str, datetime] = {}
        self._sessions: dict[str, Session] = {}
        self._turns = Turns()
        self._seq = 0
        self._version = -1
        self._seen = 0.0
        self._unsettled = asyncio.Event()
        self._parting: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        state: State,
        *,
        key: bytes,
        gate: SessionGate,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> AsyncIterator[Self]:
        """Take up what the state lists, and follow it. `key` signs grants: whoever has it can make them."""
        registry = cls(state, key, gate, clock)
        await registry._load()
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(registry._follow(), name="registry-follow"),
                tasks.create_task(registry._sweep(), name="registry-sweep"),
                tasks.create_task(registry._settle(), name="registry-settle"),
            ]
            try:
                yield registry
            finally:
                for task in work:
                    task.cancel()

    async def issue(self, grant: Grant) -> str:
        """List a grant and its session, and return its token.

        Raises InvalidRequest when it is too large, Unavailable when it cannot be stored, or when an earlier session
        of the same id is still being closed.
        """
        token = mint(self._key, grant)
        async with self._turns.take(grant.session_id):
            if await self._is_closing(grant.session_id):
                # Its end must not cut off what starts now.
                await self._close(grant.session_id)
            # First the gate, because it refuses vault ids that the store could not have. It only notes them.
            await self._open(rows.merged(await self._state.read(lambda db: rows.session(db, grant.session_id)), grant))
            session = await self._state.write(lambda db: rows.admit(db, grant, self._clock()))
            if session != self._sessions.get(session.id):  # another process has added to it meanwhile
                await self._open(session)
            self._enter(grant.id, grant.session_id, grant.expires_at)
        return token

    async def lookup(self, token: str, tunnel: str | None) -> Grant:
        """Return what a token allows here and now. `tunnel`: the sandbox tunnel it came through, if any.

        Raises GrantRefused, or Unavailable when revocations cannot be seen.
        """
        grant = self._verified(token)
        if grant.tunnel is not None and grant.tunnel != tunnel:
            raise GrantRefused("tunnel")
        if asyncio.get_running_loop().time() - self._seen > _BLIND_S:
            raise Unavailable("the list of revoked grants cannot be read now, so no grant counts")
        if grant.id not in self._live:
            await self._take_up(grant.id)
        return grant

    def _verified(self, token: str) -> Grant:
        """A token says the same for ever, so it is read once. Its digest is kept, and not the token."""
        digest, now = hashlib.sha256(token.encode("utf-8", "replace")).digest(), self._clock()
        grant = self._read.get(digest)
        if grant is None:
            grant = verify(self._key, token, now=now)
            if len(self._read) >= _TOKENS:
                del self._read[next(iter(self._read))]
            self._read[digest] = grant
        if now >= grant.expires_at:
            raise GrantRefused("expired")
        return grant

    async def ended(self, grant: Grant) -> None:
        """Return when the grant does not count any more."""
        try:
            async with self.hold(grant):
                await asyncio.Event().wait()
        except GrantRefused:
            return

    @asynccontextmanager
    async def hold(self, grant: Grant) -> AsyncIterator[None]:
        """Run the body as long as the grant counts; then it is cancelled, and GrantRefused raised in its place.

        For everything that takes time after `lookup`: a stream, a tunnel, a request on its way.
        """
        live = self._live.get(grant.id)
        if live is None:
            raise GrantRefused("revoked" if grant.id in self._revoked else "expired")
        rest = (grant.expires_at - self._clock()).total_seconds()
        try:
            async with asyncio.timeout(max(rest, 0)) as scope:
                live.scopes.add(scope)
                try:
                    yield
                finally:
                    live.scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise GrantRefused("revoked" if grant.id in self._revoked else "expired") from None

    async def record(self, grant_id: str) -> GrantRecord:
        """What is known of a grant. Raises NotFound."""
        found = await self._state.read(lambda db: rows.record(db, grant_id))
        if found is None:
            raise NotFound(f"{grant_id} is not a grant of this proxy, or ended more than an hour ago")
        return found

    async def revoke_grant(self, grant_id: str) -> GrantRecord:
        """Revoke a grant with everything narrowed from it, for good. Idempotent. Raises NotFound."""
        found = await self._state.write(lambda db: rows.revoke_grant(db, grant_id, self._clock()))
        if found is None:
            raise NotFound(f"{grant_id} is not a grant of this proxy, or ended more than an hour ago")
        self._drop(grant_id, found.expires_at)
        return found

    async def revoke_session(self, session_id: str) -> Closing:
        """Revoke every grant of a session, then have its secret store revoke what it issued. Idempotent."""
        async with self._turns.take(session_id):
            ids = await self._state.write(lambda db: rows.revoke_session(db, session_id, self._clock()))
            self._forget(session_id)
            settled = await self._try_to_close(session_id)
        return Closing(session_id, tuple(ids), settled)

    async def session(self, session_id: str) -> Session:
        """A session that is listed. Raises NotFound."""
        found = await self._state.read(lambda db: rows.session(db, session_id))
        if found is None:
            raise NotFound(f"{session_id} is not a session of this proxy: it has no grant, or was revoked")
        return found

    async def listed(self, *, after: str, limit: int) -> Sequence[Session]:
        """The sessions that live, by id, whichever process admitted them."""
        return await self._state.read(lambda db: rows.sessions(db, after=after, limit=limit))

    def sessions(self) -> Collection[Session]:
        """The sessions that live, as this process knows them."""
        return tuple(self._sessions.values())

    async def ready(self) -> None:
        """Raise Unavailable unless revocations are being seen."""
        if asyncio.get_running_loop().time() - self._seen > _BLIND_S:
            raise Unavailable(f"the state in {self._state.path} cannot be read")

    async def _load(self) -> None:
        def look(db: sqlite3.Connection) -> tuple[list[Session], list[GrantRecord], int]:
            return rows.sessions(db), rows.live(db, self._clock()), rows.last_revocation(db)

        self._version = await self._state.version()
        sessions, grants, self._seq = await self._state.read(look)
        for session in sessions:
            try:
                await self._open(session)
            except RequestError as error:
                logger.error("%s is listed, and its secrets cannot be had: %s", session.id, error)
        for grant in grants:
            self._enter(grant.id, grant.session_id, grant.expires_at)
        self._seen = asyncio.get_running_loop().time()
        # What the last run could not finish.
        self._unsettled.set()

    async def _take_up(self, grant_id: str) -> None:
        """Another process may have issued it a moment ago."""
        if grant_id in self._revoked:
            raise GrantRefused("revoked")

        def look(db: sqlite3.Connection) -> tuple[GrantRecord | None, Session | None]:
            found = rows.record(db, grant_id)
            return found, None if found is None else rows.session(db, found.session_id)

        record, session = await self._state.read(look)
        if record is None:
            raise GrantRefused("unknown")
        if session is None or record.revoked_at is not None:
            raise GrantRefused("revoked")
        await self._open(session)
        if grant_id in self._revoked:  # while we looked
            raise GrantRefused("revoked")
        self._enter(grant_id, session.id, record.expires_at)

    async def _open(self, session: Session) -> None:
        await self._gate.open_session(session.id, session.vault_ids, session.expires_at)
        self._sessions[session.id] = session

    def _enter(self, grant_id: str, session_id: str, expires_at: datetime) -> None:
        self._live.setdefault(grant_id, _Live(session_id, expires_at))

    def _drop(self, grant_id: str, expires_at: datetime | None = None) -> None:
        live = self._live.pop(grant_id, None)
        self._revoked[grant_id] = expires_at or (live.expires_at if live else self._clock() + _KEPT)
        if live is not None:
            now = asyncio.get_running_loop().time()
            for scope in live.scopes:
                with suppress(RuntimeError):  # it is ending by itself just now
                    scope.reschedule(now)

    def _forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        for grant_id in [key for key, live in self._live.items() if live.session_id == session_id]:
            self._drop(grant_id)

    async def _close(self, session_id: str) -> None:
        await self._gate.close_session(session_id)
        await self._state.write(lambda db: rows.closed(db, session_id))

    async def _try_to_close(self, session_id: str) -> bool:
        try:
            await self._close(session_id)
        except ProxyError as error:
            logger.warning("%s: its secret store has not revoked everything yet: %s", session_id, error)
            self._unsettled.set()
            return False
        return True

    async def _follow(self) -> None:
        """See what other processes did to the file."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(_POLL_S)
                try:
                    gone = await self._look()
                except Unavailable as error:
                    logger.error("revocations cannot be seen: %s", error)
                    continue
                self._seen = asyncio.get_running_loop().time()
                for session_id in gone - self._parting:
                    self._parting.add(session_id)
                    tasks.create_task(self._part(session_id), name=f"part-{session_id}")

    async def _look(self) -> frozenset[str]:
        """Drop what others revoked; return the sessions that seem to be listed no more."""
        version = await self._state.version()
        if version == self._version:
            return frozenset()
        news = await self._state.read(lambda db: rows.news(db, self._seq))
        for grant_id in news.revoked:
            self._drop(grant_id)
        self._version, self._seq = version, news.seq
        return frozenset(self._sessions.keys() - news.sessions)

    async def _part(self, session_id: str) -> None:
        """Another process ended a session that this one serves too."""
        try:
            async with self._turns.take(session_id):
                # It may have been listed since the file was read.
                if await self._state.read(lambda db: rows.session(db, session_id)) is None:
                    self._forget(session_id)
                    await self._gate.close_session(session_id)
        except ProxyError as error:
            logger.warning("%s: ended by another process, and not yet revoked here: %s", session_id, error)
        finally:
            self._parting.discard(session_id)

    async def _sweep(self) -> None:
        """End what has expired, and forget what is long gone."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = self._clock()
            for grant_id in [key for key, until in self._revoked.items() if until <= now]:
                del self._revoked[grant_id]
            for grant_id in [key for key, live in self._live.items() if live.expires_at <= now]:
                del self._live[grant_id]
            try:
                ended = await self._sweep_file(now)
            except Unavailable as error:
                logger.error("what has expired cannot be swept: %s", error)
                continue
            for session_id in ended:
                self._forget(session_id)
            if ended:
                self._unsettled.set()

    async def _sweep_file(self, now: datetime) -> Collection[str]:
        old = now - _KEPT
        # Looking costs nothing; writing costs an fsync.
        if not await self._state.read(lambda db: rows.anything_to_sweep(db, now, old)):
            return ()
        return await self._state.write(lambda db: rows.sweep(db, now, old))

    async def _settle(self) -> None:
        """Have the secret store close what is still to be closed, until it has."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._unsettled.wait()
            self._unsettled.clear()
            try:
                await self._settle_once()
            except Unavailable as error:
                logger.error("sessions that are to be closed cannot be read: %s", error)
            if self._unsettled.is_set():
                await asyncio.sleep(_RETRY_S)

    async def _settle_once(self) -> None:
        for session_id in await self._state.read(rows.closing):
            async with self._turns.take(session_id):
                if await self._is_closing(session_id):
                    await self._try_to_close(session_id)

    async def _is_closing(self, session_id: str) -> bool:
        return await self._state.read(lambda db: rows.is_closing(db, session_id))
