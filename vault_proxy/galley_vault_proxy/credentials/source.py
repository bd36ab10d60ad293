"""Credentials for the doors: which one belongs to a request of a session, fresh enough, and what must not come back."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Final

from galley_vault_proxy.credentials import material, rows
from galley_vault_proxy.credentials.directory import Directory
from galley_vault_proxy.credentials.port import EnvCredential, Injection, Location
from galley_vault_proxy.credentials.renewal import Renewal
from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.shapes import LimitedNetworking, OAuthShown, VariableShown
from galley_vault_proxy.credentials.urls import server_key
from galley_vault_proxy.errors import SecretMissing
from galley_vault_proxy.hosts import normal_pattern
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State
from galley_vault_proxy.store.port import Material, SecretStore

_HEADER: Final = "authorization"
_PATIENCE_S: Final = 2.0


class Source:
    """See `CredentialSource`."""

    def __init__(
        self,
        state: State,
        store: SecretStore,
        directory: Directory,
        renewal: Renewal,
        clock: Callable[[], datetime],
    ) -> None:
        self._state = state
        self._store = store
        self._directory = directory
        self._renewal = renewal
        self._clock = clock

    async def for_mcp(
        self, session_id: str, vault_ids: Sequence[str], url: str, *, fresh: bool = False
    ) -> Injection | None:
        try:
            key = f"mcp {server_key(url)}"
        except ValueError:
            return None
        for vault_id in vault_ids:
            stored = (await self._directory.vault(vault_id)).by_key.get(key)
            if stored is not None and (found := await self._current(session_id, stored, fresh)) is not None:
                return _injection(stored, found)
        return None

    async def for_host(self, session_id: str, vault_ids: Sequence[str]) -> Sequence[EnvCredential]:
        found: dict[str, EnvCredential] = {}
        for stored, auth in await self._variables(vault_ids):
            if auth.secret_name in found:
                continue
            secret = await self._read(session_id, stored, fresh=False)
            if secret is not None and material.VALUE in secret.fields:
                found[auth.secret_name] = _variable(session_id, stored, auth, secret)
        return tuple(found.values())

    async def placeholders(self, session_id: str, vault_ids: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for stored, auth in await self._variables(tuple(vault_ids)):
            if stored.placeholder is not None:
                found.setdefault(auth.secret_name, stored.placeholder.for_session(session_id))
        return found

    async def refresh(self, credential_id: str, seen_version: int) -> bool:
        stored = await self._state.read(lambda db: rows.credential(db, credential_id))
        if stored is None or stored.shown.archived_at is not None:
            return False
        if isinstance(stored.shown.auth, OAuthShown):
            renewed = await self._renewal.renew(stored, seen_version, why="refused")
            return renewed.version is not None and renewed.version > seen_version
        try:
            # It may have been rotated in Vault, where nobody tells us.
            return (await self._store.read_own(stored.ref)).version > seen_version
        except SecretMissing:
            return False

    async def _current(self, session_id: str, stored: Stored, fresh: bool) -> Material | None:
        """The secret, renewed first if its end is near. None: archived a moment ago."""
        found = await self._read(session_id, stored, fresh=fresh)
        auth = stored.shown.auth
        if found is None or not isinstance(auth, OAuthShown) or auth.refresh is None:
            return found
        now = self._clock()
        if not material.due(found, now):
            return found
        end = material.expires_at(found)
        try:
            # While the old token is good nobody waits long for a new one; it goes on being fetched.
            async with asyncio.timeout(_PATIENCE_S if end is not None and end > now else None):
                renewed = await self._renewal.renew(stored, found.version, why="due")
        except TimeoutError:
            return found
        if renewed.version is None:
            return None
        if renewed.version <= found.version:
            # Whether it is still good the server knows best.
            return found
        return await self._read(session_id, stored, fresh=True)

    async def _read(self, session_id: str, stored: Stored, *, fresh: bool) -> Material | None:
        try:
            found = await self._store.read(session_id, stored.ref, fresh=fresh)
            if found.version < stored.version and not fresh:
                # Rotated by us since the store's answer was cached.
                found = await self._store.read(session_id, stored.ref, fresh=True)
            return found
        except SecretMissing:
            current = await self._state.read(lambda db: rows.credential(db, stored.shown.id))
            if current is None or current.shown.archived_at is not None:
                return None
            raise

    async def _variables(self, vault_ids: Sequence[str]) -> list[tuple[Stored, VariableShown]]:
        """In the order in which vaults count."""
        return [
            (stored, stored.shown.auth)
            for vault_id in vault_ids
            for stored in (await self._directory.vault(vault_id)).by_key.values()
            if isinstance(stored.shown.auth, VariableShown)
        ]


def _injection(stored: Stored, found: Material) -> Injection:
    token = material.token_of(found)
    if token is None:
        raise SecretMissing(f"{stored.shown.id} holds no token that a header can carry: whatever wrote it went wrong")
    # Redacted in both spellings, if what is sent is not exactly what is kept.
    kept = material.all_secrets(found)
    trimmed = () if any(secret.matches(token.reveal()) for secret in kept) else (token,)
    return Injection(
        header=_HEADER,
        value=Secret(f"Bearer {token.reveal()}"),
        credential_id=stored.shown.id,
        version=found.version,
        secrets=(*trimmed, *kept),
    )


def _variable(session_id: str, stored: Stored, auth: VariableShown, found: Material) -> EnvCredential:
    secret = found.fields[material.VALUE]
    networking = auth.networking
    return EnvCredential(
        credential_id=stored.shown.id,
        version=found.version,
        name=auth.secret_name,
        placeholder=stored.placeholder.for_session(session_id) if stored.placeholder else "",
        secret=secret,
        hosts=(
            tuple(normal_pattern(host) for host in networking.allowed_hosts)
            if isinstance(networking, LimitedNetworking)
            else None
        ),
        locations=_locations(auth, secret),
    )


def _locations(auth: VariableShown, secret: Secret) -> frozenset[Location]:
    place = auth.injection_location
    found: set[Location] = {"body"} if place.body else set()
    # A line break in a header begins another one, so such a secret has no place there.
    if place.header and secret.reveal().isprintable():
        found.add("header")
    return frozenset(found)
