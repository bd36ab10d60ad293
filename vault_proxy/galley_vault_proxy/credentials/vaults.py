"""Vaults: what the seven calls on them do."""

import re
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from galley_vault_proxy.audit import Audit, AuditLine
from galley_vault_proxy.credentials import merge, rows
from galley_vault_proxy.credentials.directory import Directory
from galley_vault_proxy.credentials.once import NEVER, Once
from galley_vault_proxy.credentials.purges import Purger
from galley_vault_proxy.credentials.rows import WHOLE_VAULT
from galley_vault_proxy.credentials.shapes import DeletedVault, ListParams, Vault, VaultCreate, VaultPage, VaultUpdate
from galley_vault_proxy.errors import InvalidRequest, NotFound, StoreUnavailable
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.state import State
from galley_vault_proxy.store.port import SecretRef, SecretStore

_PAGE: Final = re.compile(r"page_([1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True)
class Ground:
    """What everything about vaults and credentials stands on."""

    state: State
    store: SecretStore
    audit: Audit
    directory: Directory
    purger: Purger
    clock: Callable[[], datetime]


class Vaults:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def create(self, asked: VaultCreate, *, once: Once = NEVER) -> Vault:
        now = self._ground.clock()
        vault = Vault(
            id=new_id("vlt"),
            display_name=asked.display_name,
            metadata=asked.metadata,
            created_at=now,
            updated_at=now,
            archived_at=None,
        )

        def write(db: sqlite3.Connection) -> None:
            rows.add_vault(db, vault)
            once.keep(db, vault, now)

        self._note(vault.id, "vault_created")
        await self._ground.state.write(write)
        return vault

    async def retrieve(self, vault_id: str) -> Vault:
        return await self._ground.state.read(lambda db: known(db, vault_id))

    async def list(self, asked: ListParams) -> VaultPage:
        found = await self._ground.state.read(
            lambda db: rows.vaults(
                db, before=position(asked.page), limit=asked.limit + 1, archived=asked.include_archived
            )
        )
        page = found[: asked.limit]
        return VaultPage(
            data=tuple(stored.shown for stored in page),
            next_page=cursor(page[-1].n) if len(found) > asked.limit else None,
        )

    async def update(self, vault_id: str, asked: VaultUpdate, *, once: Once = NEVER) -> Vault:
        now = self._ground.clock()

        def write(db: sqlite3.Connection) -> Vault:
            changed = merge.updated_vault(usable(db, vault_id), asked, now)
            rows.put_vault(db, changed)
            once.keep(db, changed, now)
            return changed

        self._note(vault_id, "vault_updated")
        return await self._ground.state.write(write)

    async def archive(self, vault_id: str) -> Vault:
        """For good, with every credential of it. Idempotent.

        From the moment that this is written no credential of it is used; then the secrets are purged. Raises
        StoreUnavailable when they cannot be purged now, which is tried again until it is done.
        """
        now = self._ground.clock()

        def write(db: sqlite3.Connection) -> tuple[Vault, list[SecretRef]]:
            vault = known(db, vault_id)
            if vault.archived_at is None:
                vault = vault.model_copy(update={"archived_at": now, "updated_at": now})
                rows.put_vault(db, vault)
                for stored in rows.living(db, vault_id):
                    gone = stored.shown.model_copy(update={"archived_at": now, "updated_at": now})
                    rows.put_credential(db, gone, stored.version)
                    rows.owe_purge(db, stored.ref, now)
            return vault, rows.owed(db, now, limit=1000, vault_id=vault_id)

        self._note(vault_id, "vault_archived")
        vault, owed = await self._ground.state.write(write)
        self._ground.directory.forget(vault_id)
        await self._purge(f"{vault_id} is archived and its credentials are not used any more", owed)
        return vault

    async def delete(self, vault_id: str) -> DeletedVault:
        """For good, with every record of it. Raises StoreUnavailable as `archive` does; asked again it goes on."""
        now = self._ground.clock()
        whole = SecretRef(vault_id, WHOLE_VAULT)

        def write(db: sqlite3.Connection) -> None:
            if rows.is_owed(db, whole):
                return
            known(db, vault_id)
            rows.delete_vault(db, vault_id)
            rows.owe_purge(db, whole, now)

        self._note(vault_id, "vault_deleted")
        await self._ground.state.write(write)
        self._ground.directory.forget(vault_id)
        await self._purge(f"{vault_id} is deleted", [whole])
        return DeletedVault(id=vault_id)

    def _note(self, vault_id: str, reason: str) -> None:
        # The line comes first: what cannot be recorded is not done.
        self._ground.audit.record(
            AuditLine("credential.write", "allow", reason=reason, who="service", vault_id=vault_id)
        )

    async def _purge(self, done: str, owed: Collection[SecretRef]) -> None:
        try:
            await self._ground.purger.purge(owed)
        except StoreUnavailable as error:
            raise not_yet(done, error) from None


def known(db: sqlite3.Connection, vault_id: str) -> Vault:
    found = rows.vault(db, vault_id)
    if found is None:
        raise NotFound(f"{vault_id[:80]} is not a vault of this proxy")
    return found.shown


def usable(db: sqlite3.Connection, vault_id: str) -> Vault:
    """A vault that can be changed. Raises NotFound, InvalidRequest."""
    vault = known(db, vault_id)
    if vault.archived_at is not None:
        raise InvalidRequest(f"{vault_id} is archived: it cannot be changed, and takes no credentials")
    return vault


def not_yet(done: str, error: StoreUnavailable) -> StoreUnavailable:
    return StoreUnavailable(
        f"{done}, but what it held could not be removed from the secret store yet, which is tried again: "
        f"{error.message}"
    )


def cursor(n: int) -> str:
    return f"page_{n}"


def position(page: str | None) -> int | None:
    """Raises InvalidRequest."""
    if page is None:
        return None
    found = _PAGE.fullmatch(page)
    if found is None:
        raise InvalidRequest(f"page: not a `next_page` of this list (got '{page[:80]}')")
    return int(found[1])
