"""New access tokens: before the old one ends, or when an upstream refuses it; one request for all who wait.

In one process all who ask for a credential at a time share one task. Between processes a row in `state.db` says who is
at it; the others watch the secret's version. The task is nobody's request: a client that hangs up must not cut off a
token request whose answer would replace the refresh token.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self
from urllib.parse import urlsplit

from galley_vault_proxy.audit import AuditLine
from galley_vault_proxy.credentials import material
from galley_vault_proxy.credentials import rows as credential_rows
from galley_vault_proxy.credentials.renewal import Reason, Renewed
from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.shapes import OAuthShown, RefreshAttemptShown, RefreshShown
from galley_vault_proxy.credentials.vaults import Ground
from galley_vault_proxy.errors import (
    InvalidRequest,
    ProxyError,
    RequestError,
    SecretMissing,
    Unavailable,
    VersionConflict,
)
from galley_vault_proxy.oauth import rows
from galley_vault_proxy.oauth.outside import Outside
from galley_vault_proxy.oauth.tokens import Client, Refused, Tokens, ask
from galley_vault_proxy.store.port import Material

# Longer than the token request and the store together can take; then the holder counts as dead.
_HELD: Final = timedelta(seconds=60)
_PATIENCE_S: Final = 30.0
_LOOK_S: Final = 0.05
_CLOSING_S: Final = 3.0
_TRIES: Final = 5
_LATER: Final = timedelta(seconds=10)
_FOR_GOOD: Final = timedelta(minutes=5)
# An upstream that refuses a token fresh from the oven would refuse the next one too.
_JUST_NOW_S: Final = 10.0
_MOST_REMEMBERED: Final = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one attempt came to. `hold_off` None: it went well, or there was nothing to try."""

    renewed: Renewed
    hold_off: timedelta | None = None


class Refresher:
    """See `Renewal`."""

    def __init__(self, ground: Ground, outside: Outside) -> None:
        self._ground = ground
        self._outside = outside
        self._tasks = asyncio.TaskGroup()
        self._running: dict[str, asyncio.Task[Renewed | ProxyError]] = {}
        self._fresh: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def open(cls, ground: Ground, outside: Outside) -> AsyncIterator[Self]:
        refresher = cls(ground, outside)
        async with refresher._tasks:
            try:
                yield refresher
            finally:
                # What is on its way may replace a refresh token: it is let finish, within bounds.
                running = list(refresher._running.values())
                if running:
                    await asyncio.wait(running, timeout=_CLOSING_S)
                for task in running:
                    task.cancel()

    async def renew(self, stored: Stored, seen_version: int, *, why: Reason) -> Renewed:
        credential_id = stored.shown.id
        if why == "refused" and self._is_fresh(credential_id, seen_version):
            return Renewed(seen_version, None)
        task = self._running.get(credential_id)
        if task is None and why == "due" and await self._failed_lately(credential_id, seen_version):
            # Every request of a session comes by here: it must not cost a look into the store.
            return Renewed(seen_version, None)
        task = self._running.get(credential_id)
        if task is None:
            work = self._answered(stored, seen_version, why)
            task = self._running[credential_id] = self._tasks.create_task(work, name=f"refresh-{credential_id}")
            task.add_done_callback(lambda _: self._running.pop(credential_id, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, ProxyError):
            raise outcome
        return outcome

    async def _answered(self, stored: Stored, seen: int, why: Reason) -> Renewed | ProxyError:
        """The task's boundary: what goes wrong is told to those who wait, and does not end the proxy."""
        try:
            return await self._renew(stored, seen, why)
        except SecretMissing:
            return Renewed(None, None)
        except ProxyError as error:
            return error
        except Exception:
            logger.exception("refreshing %s failed", stored.shown.id)
            return Unavailable(f"{stored.shown.id} could not be refreshed; the proxy's log has the details")

    async def _renew(self, stored: Stored, seen: int, why: Reason) -> Renewed:
        credential_id, state, clock = stored.shown.id, self._ground.state, self._ground.clock
        holder = secrets.token_hex(8)
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            current = await self._ground.store.read_own(stored.ref)
            if current.version > seen:
                await self._tell(stored, current)
                return Renewed(current.version, None)
            if why != "asked" and await self._failed_lately(credential_id, seen):
                return Renewed(seen, None)
            now = clock()
            if await state.write(lambda db: rows.take_refresh(db, credential_id, holder, now, now + _HELD)):  # noqa: B023
                break
            if time.monotonic() > give_up:
                return Renewed(seen, None)
            await asyncio.sleep(_LOOK_S)
        failed_until: datetime | None = None
        try:
            outcome = await self._held(stored, seen, why)
            failed_until = None if outcome.hold_off is None else clock() + outcome.hold_off
            return outcome.renewed
        finally:
            await asyncio.shield(
                state.write(lambda db: rows.leave_refresh(db, credential_id, holder, seen, failed_until))
            )

    async def _held(self, stored: Stored, seen: int, why: Reason) -> _Outcome:
        """Nobody else refreshes this credential now. Whoever did before has stored what came of it."""
        fresh = await self._ground.state.read(lambda db: credential_rows.credential(db, stored.shown.id))
        if fresh is None or fresh.shown.archived_at is not None:
            return _Outcome(Renewed(None, None))
        current = await self._ground.store.read_own(stored.ref)
        if current.version > seen:
            await self._tell(fresh, current)
            return _Outcome(Renewed(current.version, None))
        if why != "asked" and await self._failed_lately(stored.shown.id, seen):
            return _Outcome(Renewed(seen, None))
        auth = fresh.shown.auth
        refresh = auth.refresh if isinstance(auth, OAuthShown) else None
        if refresh is None or material.REFRESH not in current.fields:
            attempt = RefreshAttemptShown(status="no_refresh_token", http_response=None)
            return _Outcome(Renewed(seen, attempt), _FOR_GOOD)
        await self._ground.audit.ready()
        return await self._attempt(fresh, refresh, current)

    async def _attempt(self, stored: Stored, refresh: RefreshShown, current: Material) -> _Outcome:
        began = time.monotonic()
        client = Client(
            refresh.token_endpoint,
            refresh.client_id,
            refresh.token_endpoint_auth.type,
            current.fields.get(material.CLIENT),
        )
        form = {"grant_type": "refresh_token", "refresh_token": current.fields[material.REFRESH].reveal()}
        if refresh.scope:
            form["scope"] = refresh.scope
        if refresh.resource:
            form["resource"] = refresh.resource
        try:
            answer = await ask(
                self._outside, client, form, now=self._ground.clock(), hide=material.all_secrets(current)
            )
        except RequestError as error:
            # The endpoint is not one that may be asked, or does not answer.
            self._note(stored, current.version, error.error_code or "refused_endpoint", began, done=False)
            lasting = isinstance(error, InvalidRequest)
            attempt = RefreshAttemptShown(status="connect_error", http_response=None)
            return _Outcome(Renewed(current.version, attempt), _FOR_GOOD if lasting else _LATER)
        if isinstance(answer, Refused):
            self._note(stored, current.version, answer.error, began, done=False)
            attempt = RefreshAttemptShown(status="failed", http_response=answer.response)
            return _Outcome(Renewed(current.version, attempt), _hold_off(answer))
        version = await self._store(stored, current, answer)
        self._fresh[stored.shown.id] = (version, time.monotonic())
        if len(self._fresh) > _MOST_REMEMBERED:
            self._fresh.popitem(last=False)
        self._note(stored, version, "refreshed", began, done=True)
        return _Outcome(Renewed(version, RefreshAttemptShown(status="succeeded", http_response=None)))

    async def _store(self, stored: Stored, current: Material, tokens: Tokens) -> int:
        """Compare and set. Who has written meanwhile has the last word, but a spent refresh token must not stay."""
        used = current.fields[material.REFRESH].reveal()
        changes = tokens.fields(self._ground.clock())
        for _ in range(_TRIES):
            fields = material.present({**current.fields, **changes})
            try:
                version = await self._ground.store.write(stored.ref, fields, expected=current.version)
            except VersionConflict:
                current = await self._ground.store.read_own(stored.ref)
                now_there = current.fields.get(material.REFRESH)
                if tokens.refresh is None or now_there is None or now_there.reveal() != used:
                    await self._tell(stored, current)
                    return current.version
                changes = {material.REFRESH: tokens.refresh}
                continue
            await self._tell(stored, Material(fields, version))
            return version
        raise VersionConflict(f"{stored.shown.id} is being written to by others all the time")

    async def _tell(self, stored: Stored, current: Material) -> None:
        """Write down which version is the newest, so that every process asks for it."""
        if current.version <= stored.version:
            return
        end = material.expires_at(current)
        await self._ground.state.write(
            lambda db: credential_rows.note_version(db, stored.shown.id, current.version, end)
        )
        self._ground.directory.forget(stored.shown.vault_id)

    async def _failed_lately(self, credential_id: str, version: int) -> bool:
        now = self._ground.clock()
        return await self._ground.state.read(lambda db: rows.failed_until(db, credential_id, version, now))

    def _is_fresh(self, credential_id: str, version: int) -> bool:
        known, at = self._fresh.get(credential_id, (0, 0.0))
        return known == version and time.monotonic() - at < _JUST_NOW_S

    def _note(self, stored: Stored, version: int, reason: str, began: float, *, done: bool) -> None:
        auth = stored.shown.auth
        endpoint = auth.refresh.token_endpoint if isinstance(auth, OAuthShown) and auth.refresh else ""
        log = logger.info if done else logger.warning
        log("%s: refreshing its access token: %s", stored.shown.id, reason)
        try:
            self._ground.audit.record(
                AuditLine(
                    "credential.refresh",
                    "allow" if done else "deny",
                    reason=reason,
                    who="proxy",
                    vault_id=stored.shown.vault_id,
                    credential_id=stored.shown.id,
                    credential_version=version,
                    host=urlsplit(endpoint).hostname,
                    duration_ms=round((time.monotonic() - began) * 1000, 1),
                )
            )
        except Unavailable as error:
            # What has happened has happened, and the new tokens are stored; the doors close by themselves.
            logger.error("the audit log misses a refresh of %s: %s", stored.shown.id, error)


def _hold_off(answer: Refused) -> timedelta:
    if not answer.passing:
        return _FOR_GOOD
    asked = timedelta(seconds=answer.retry_after_s or 0)
    return min(max(asked, _LATER), _FOR_GOOD)
