"""The port of secret stores: what the embedded store and Vault both promise. No I/O here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from galley_vault_proxy.secret import Secret

Engine: TypeAlias = Literal["database", "pki", "generic"]


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a credential's secret lies."""

    vault_id: str
    credential_id: str


@dataclass(frozen=True, slots=True)
class Material:
    """What a secret holds, and which version of it this is."""

    fields: Mapping[str, Secret]
    version: int


@dataclass(frozen=True, slots=True)
class Lease:
    """What a dynamic engine issued for one session. It ends with the session at the latest."""

    id: str
    fields: Mapping[str, Secret]
    expires_at: datetime


class SecretStore(Protocol):
    """Keeps secrets, and lets a session read those of its own vaults only.

    Every call is bounded in time and raises StoreUnavailable when the store is sealed, cannot be reached or answers
    in error: nothing was done then, as far as can be known. No error says what a secret holds. An id that cannot be
    one (empty, over 40 bytes, unprintable) is refused with InvalidRequest.
    """

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, expected: int | None) -> int:
        """Store all fields as a new version and return its number, from 1.

        Raises VersionConflict when `expected` is not the current version; `expected=0`: there must be none yet;
        None writes over whatever is there.
        """
        ...

    async def read(self, session_id: str, ref: SecretRef, *, fresh: bool = False) -> Material:
        """Read through the session's own identity. An answer may be as old as `cache_ttl`, unless `fresh`.

        Raises SecretMissing, SessionClosed (or never opened), AccessRefused (the vault is not one of the session's).
        """
        ...

    async def read_own(self, ref: SecretRef) -> Material:
        """Read as the proxy itself, for what belongs to no session (refreshing, validating). Raises SecretMissing."""
        ...

    async def purge(self, ref: SecretRef) -> None:
        """Remove every version at once. Idempotent."""
        ...

    async def purge_vault(self, vault_id: str) -> None:
        """Remove every secret of a vault, and the vault's identity. Idempotent."""
        ...

    async def open_session(self, session_id: str, vault_ids: Collection[str], expires_at: datetime) -> None:
        """Let a session read these vaults until then. Asked again, it sets vaults and end anew.

        Asks nothing of the store itself, so it works while that is sealed: tokens are made at the first read. Called
        for every listed session at start, and in every process that shares the state. A session that was closed may
        be opened again; what was issued before stays revoked.
        """
        ...

    async def close_session(self, session_id: str) -> None:
        """Refuse new calls, wait (bounded) for those in flight, revoke everything issued. Idempotent.

        Raises StoreUnavailable when not all of it could be revoked: the registry then asks again until it could,
        after a restart too. It never opens the session again before.
        """
        ...

    async def issue(
        self, session_id: str, vault_id: str, engine: Engine, role: str, params: Mapping[str, str]
    ) -> Lease:
        """Have a dynamic engine make something for a session.

        `role` is the operator's name for it (`reader`); for `generic` the mount comes first (`rabbitmq/reader`).
        Raises SessionClosed, AccessRefused, SecretMissing (no such role), InvalidRequest (no such engine here).
        """
        ...

    async def seal(self, vault_id: str, plaintext: bytes) -> str:
        """Encrypt, bound to the vault: only `unseal` of the same vault gives it back."""
        ...

    async def unseal(self, vault_id: str, sealed: str) -> bytes:
        """Raises InvalidRequest when it was not sealed here, or for another vault."""
        ...

    async def wrap(self, session_id: str, ref: SecretRef, *, ttl_s: int) -> Secret:
        """Return a token that gives the credential's material away once, within `ttl_s`. Raises what `read` raises."""
        ...

    async def unwrap(self, ref: SecretRef, token: Secret) -> Material:
        """Spend such a token. Raises AccessRefused when it is spent, expired, unknown, or for another credential."""
        ...

    async def ready(self) -> None:
        """Raise StoreUnavailable, with the reason, unless the store would serve a request now."""
        ...
