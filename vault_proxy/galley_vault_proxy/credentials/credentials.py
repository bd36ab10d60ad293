"""Credentials: what the calls on them do. Secrets go to the store and nowhere else."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from galley_vault_proxy.audit import AuditLine
from galley_vault_proxy.credentials import material, merge, rows
from galley_vault_proxy.credentials.once import NEVER, Once
from galley_vault_proxy.credentials.placeholders import Placeholder
from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.shapes import (
    Credential,
    CredentialCreate,
    CredentialPage,
    CredentialUpdate,
    DeletedCredential,
    ListParams,
    OAuthShown,
    VariableCreate,
    match_key,
)
from galley_vault_proxy.credentials.vaults import Ground, cursor, known, not_yet, position, usable
from galley_vault_proxy.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    ProxyError,
    SecretMissing,
    StoreUnavailable,
    Unavailable,
    VersionConflict,
)
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.port import SecretRef

MAX_CREDENTIALS: Final = 20
# Longer than the store can take to write one: then the secret of a create that never ended is purged.
_CREATE: Final = timedelta(minutes=10)
_UNDO_S: Final = 5.0
_TRIES: Final = 5


class Credentials:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def create(self, vault_id: str, asked: CredentialCreate, *, once: Once = NEVER) -> Credential:
        """Raises NotFound, InvalidRequest (archived, full), Conflict (its key is taken), StoreUnavailable."""
        now = self._ground.clock()
        credential = merge.new_credential(new_id("vcrd"), vault_id, asked, now)
        auth = asked.auth
        placeholder = Placeholder.like(auth.secret_value.reveal()) if isinstance(auth, VariableCreate) else None
        await self.add(credential, material.created(auth, now), placeholder, once=once)
        return credential

    async def add(
        self,
        credential: Credential,
        fields: Mapping[str, Secret],
        placeholder: Placeholder | None = None,
        *,
        once: Once = NEVER,
    ) -> None:
        """Write a new credential, its secret first. That it may have to be purged is noted before that."""
        ref = SecretRef(credential.vault_id, credential.id)
        now = self._ground.clock()

        def begin(db: sqlite3.Connection) -> None:
            _admit(db, credential)
            rows.owe_purge(db, ref, now + _CREATE)

        def end(db: sqlite3.Connection) -> None:
            _admit(db, credential)
            if not rows.keep(db, ref):
                raise Unavailable("the secret store took too long: nothing was created")
            rows.add_credential(db, credential, version, placeholder)
            once.keep(db, credential, now)

        self._note(ref, "created")
        await self._ground.state.write(begin)
        try:
            version = await self._ground.store.write(ref, fields, expected=0)
            await self._ground.state.write(end)
        except BaseException:
            await self._undo(ref)
            raise
        self._ground.directory.forget(ref.vault_id)

    async def replace(self, stored: Stored, auth: OAuthShown, fields: Mapping[str, Secret]) -> None:
        """Give an OAuth credential a new authorization, whole: another client, other tokens, nothing of the old."""
        version = await self._rewrite(stored, {name: fields.get(name) for name in material.OAUTH_FIELDS})
        now = self._ground.clock()

        def write(db: sqlite3.Connection) -> None:
            current = _usable(db, stored.shown.vault_id, stored.shown.id)
            changed = current.shown.model_copy(update={"auth": auth, "updated_at": now})
            rows.put_credential(db, changed, version)

        self._note(stored.ref, "authorized", version)
        await self._ground.state.write(write)
        self._ground.directory.forget(stored.shown.vault_id)

    async def retrieve(self, vault_id: str, credential_id: str) -> Credential:
        return (await self._ground.state.read(lambda db: _known(db, vault_id, credential_id))).shown

    async def usable(self, vault_id: str, credential_id: str) -> Stored:
        """With what is not shown of it. Raises NotFound, or InvalidRequest when it is archived."""
        return await self._ground.state.read(lambda db: _usable(db, vault_id, credential_id))

    async def list(self, vault_id: str, asked: ListParams) -> CredentialPage:
        def look(db: sqlite3.Connection) -> list[Stored]:
            known(db, vault_id)
            return rows.credentials(
                db, vault_id, before=position(asked.page), limit=asked.limit + 1, archived=asked.include_archived
            )

        found = await self._ground.state.read(look)
        page = found[: asked.limit]
        return CredentialPage(
            data=tuple(stored.shown for stored in page),
            next_page=cursor(page[-1].n) if len(found) > asked.limit else None,
        )

    async def update(
        self, vault_id: str, credential_id: str, asked: CredentialUpdate, *, once: Once = NEVER
    ) -> Credential:
        """Raises NotFound, InvalidRequest, StoreUnavailable, VersionConflict (somebody writes all the time)."""
        now = self._ground.clock()
        stored = await self._ground.state.read(lambda db: _usable(db, vault_id, credential_id))
        change = merge.changed_auth(stored.shown.auth, asked.auth, now)
        merge.updated(stored.shown, asked, change.auth, now)  # refused before the secret is written
        self._note(stored.ref, "updated", stored.version)
        version = await self._rewrite(stored, change.secrets) if change.secrets else stored.version

        def write(db: sqlite3.Connection) -> Credential:
            # Read again: somebody else may have changed other fields meanwhile.
            current = _usable(db, vault_id, credential_id)
            auth = merge.changed_auth(current.shown.auth, asked.auth, now).auth
            if (
                isinstance(auth, OAuthShown)
                and isinstance(current.shown.auth, OAuthShown)
                and version < current.version
            ):
                auth = auth.model_copy(update={"expires_at": current.shown.auth.expires_at})
            changed = merge.updated(current.shown, asked, auth, now)
            rows.put_credential(db, changed, version)
            once.keep(db, changed, now)
            return changed

        changed = await self._ground.state.write(write)
        self._ground.directory.forget(vault_id)
        return changed

    async def archive(self, vault_id: str, credential_id: str) -> Credential:
        """For good: it is not used any more and its key is free, then its secret is purged. Idempotent.

        Raises StoreUnavailable when the secret cannot be purged now, which is tried again until it is done.
        """
        now = self._ground.clock()

        def write(db: sqlite3.Connection) -> tuple[Stored, Credential, bool]:
            stored = _known(db, vault_id, credential_id)
            shown = stored.shown
            if shown.archived_at is None:
                shown = shown.model_copy(update={"archived_at": now, "updated_at": now})
                rows.put_credential(db, shown, stored.version)
                rows.owe_purge(db, stored.ref, now)
            return stored, shown, rows.is_owed(db, stored.ref)

        self._note(SecretRef(vault_id, credential_id), "archived")
        stored, shown, owed = await self._ground.state.write(write)
        self._ground.directory.forget(vault_id)
        if owed:
            await self._purge(f"{credential_id} is archived and not used any more", stored.ref)
        return shown

    async def delete(self, vault_id: str, credential_id: str) -> DeletedCredential:
        """For good, with its record. Raises StoreUnavailable as `archive` does; asked again it goes on."""
        now = self._ground.clock()
        ref = SecretRef(vault_id, credential_id)

        def write(db: sqlite3.Connection) -> None:
            if rows.credential(db, credential_id) is None and rows.is_owed(db, ref):
                return
            _known(db, vault_id, credential_id)
            rows.delete_credential(db, vault_id, credential_id)
            rows.owe_purge(db, ref, now)

        self._note(ref, "deleted")
        await self._ground.state.write(write)
        self._ground.directory.forget(vault_id)
        await self._purge(f"{credential_id} is deleted", ref)
        return DeletedCredential(id=credential_id)

    async def _rewrite(self, stored: Stored, changes: Mapping[str, Secret | None]) -> int:
        """Change fields of a secret and keep the others, whoever else writes to it. Return its version."""
        for _ in range(_TRIES):
            try:
                current = await self._ground.store.read_own(stored.ref)
                fields = material.present({**current.fields, **changes})
                return await self._ground.store.write(stored.ref, fields, expected=current.version)
            except VersionConflict:
                continue
            except SecretMissing:
                # Archived since, if anything can be said of it.
                await self._ground.state.read(lambda db: _usable(db, stored.shown.vault_id, stored.shown.id))
                raise
        raise VersionConflict(f"{stored.shown.id} is being written to by others all the time: try again")

    async def _undo(self, ref: SecretRef) -> None:
        """Purge what a failed create may have written. If that fails too, it is due in a while."""
        with contextlib.suppress(ProxyError, TimeoutError):
            async with asyncio.timeout(_UNDO_S):
                # After a cancelled write: it is in the queue before this, and may have made the credential.
                if await self._ground.state.write(lambda db: rows.give_up(db, ref)):
                    await self._ground.store.purge(ref)

    async def _purge(self, done: str, ref: SecretRef) -> None:
        try:
            await self._ground.purger.purge([ref])
        except StoreUnavailable as error:
            raise not_yet(done, error) from None

    def _note(self, ref: SecretRef, reason: str, version: int | None = None) -> None:
        # The line comes first: what cannot be recorded is not done.
        self._ground.audit.record(
            AuditLine(
                "credential.write",
                "allow",
                reason=reason,
                who="service",
                vault_id=ref.vault_id,
                credential_id=ref.credential_id,
                credential_version=version,
            )
        )


def _known(db: sqlite3.Connection, vault_id: str, credential_id: str) -> Stored:
    known(db, vault_id)
    found = rows.credential(db, credential_id)
    if found is None or found.shown.vault_id != vault_id:
        raise NotFound(f"{credential_id[:80]} is not a credential of {vault_id}")
    return found


def _usable(db: sqlite3.Connection, vault_id: str, credential_id: str) -> Stored:
    found = _known(db, vault_id, credential_id)
    if found.shown.archived_at is not None:
        raise InvalidRequest(f"{credential_id} is archived: its secret is purged, and it cannot be changed")
    return found


def _admit(db: sqlite3.Connection, new: Credential) -> None:
    """Raise unless the vault takes one more credential, and this one."""
    usable(db, new.vault_id)
    holder = rows.holder(db, new.vault_id, match_key(new.auth))
    if holder is not None:
        field = "secret_name" if new.auth.type == "environment_variable" else "mcp_server_url"
        raise Conflict(
            f"auth.{field}: {holder} of this vault has it already: update that one, or archive it first",
            error_code="duplicate_credential",
        )
    if rows.count(db, new.vault_id) >= MAX_CREDENTIALS:
        raise InvalidRequest(
            f"{new.vault_id} holds {MAX_CREDENTIALS} credentials, which is the most: archive one, or use another vault"
        )
