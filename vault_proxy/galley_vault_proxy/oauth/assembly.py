"""Everything of vaults, credentials and OAuth, opened together: what the app and the doors take from here."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials import rows as credential_rows
from galley_vault_proxy.credentials.credentials import Credentials
from galley_vault_proxy.credentials.directory import Directory
from galley_vault_proxy.credentials.face import VaultFace
from galley_vault_proxy.credentials.port import CredentialSource
from galley_vault_proxy.credentials.purges import Purger
from galley_vault_proxy.credentials.source import Source
from galley_vault_proxy.credentials.validate import Validator
from galley_vault_proxy.credentials.vaults import Ground, Vaults
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.oauth import rows as oauth_rows
from galley_vault_proxy.oauth.face import LoginFace
from galley_vault_proxy.oauth.logins import Logins
from galley_vault_proxy.oauth.outside import Outside
from galley_vault_proxy.oauth.refresh import Refresher
from galley_vault_proxy.state import Schema, State
from galley_vault_proxy.store.port import SecretStore

SCHEMAS: Final[tuple[Schema, ...]] = (credential_rows.SCHEMA, oauth_rows.SCHEMA)
"""To be given to `State.open`."""


@dataclass(frozen=True, slots=True)
class CredentialPart:
    """`source` is for the doors; the faces are for the API, and `login_face.doors()` for routes behind no key."""

    source: CredentialSource
    vaults: Vaults
    credentials: Credentials
    logins: Logins
    vault_face: VaultFace
    login_face: LoginFace


@asynccontextmanager
async def open_credentials(
    state: State,
    store: SecretStore,
    audit: Audit,
    guard: Netguard,
    *,
    key: bytes,
    base_url: Callable[[], str],
    ssl_context: ssl.SSLContext | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[CredentialPart]:
    """`key` is any secret of this home that is not in the state: fingerprints of repeatable calls are made with it.
    `base_url` says under which URL people and authorization servers reach this proxy.
    """
    async with (
        Directory.open(state) as directory,
        Purger.open(state, store, clock) as purger,
        Outside.open(guard, ssl_context=ssl_context) as outside,
    ):
        ground = Ground(state, store, audit, directory, purger, clock)
        async with Refresher.open(ground, outside) as refresher:
            vaults, credentials = Vaults(ground), Credentials(ground)
            validator = Validator(ground, credentials, refresher, outside)
            logins = Logins(ground, credentials, outside, base_url)
            yield CredentialPart(
                source=Source(state, store, directory, refresher, clock),
                vaults=vaults,
                credentials=credentials,
                logins=logins,
                login_face=LoginFace(logins),
                vault_face=VaultFace(vaults, credentials, validator, state, once_key=key),
            )
