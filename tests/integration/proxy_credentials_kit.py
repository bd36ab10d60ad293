"""Vaults, credentials and OAuth of a vault proxy in this process, over the embedded store and real sockets."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import anthropic
import httpx2
from galley_vault_proxy.admin.app import build_http
from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials.port import CredentialSource
from galley_vault_proxy.http.serving import serve
from galley_vault_proxy.kept import private_directory
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.oauth.assembly import SCHEMAS, CredentialPart, open_credentials
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State
from galley_vault_proxy.store import leases
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.port import SecretStore

KEY = "service-key-0123456789"
ONCE_KEY = b"o" * 32
LOOPBACK = (ip_network("127.0.0.0/8"),)


class Clock:
    """The time, which a test may move."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass(frozen=True)
class Broker:
    url: str
    home: Path
    part: CredentialPart
    store: SecretStore
    state: State
    audit: Audit
    clock: Clock

    @property
    def source(self) -> CredentialSource:
        return self.part.source

    def sdk(self, *, retries: int = 0) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(api_key=KEY, base_url=self.url, max_retries=retries)

    def sync_sdk(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(api_key=KEY, base_url=self.url, max_retries=0)

    def http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, headers={"x-api-key": KEY}, trust_env=False, timeout=10)

    async def session(self, *vault_ids: str, session_id: str = "sesn_1") -> str:
        await self.store.open_session(session_id, vault_ids, self.clock() + timedelta(hours=1))
        return session_id


def embedded(home: Path, state: State, clock: Clock) -> AbstractAsyncContextManager[SecretStore]:
    return EmbeddedStore.open(home, clock=clock)


@asynccontextmanager
async def broker(
    home: Path,
    *,
    store: Callable[[Path, State, Clock], AbstractAsyncContextManager[SecretStore]] = embedded,
    around: Callable[[SecretStore], SecretStore] = lambda store: store,
) -> AsyncIterator[Broker]:
    """`around` may put something between the credentials and the store."""
    clock = Clock()
    url = ""
    private_directory(home)
    async with (
        State.open(home / "state.db", [*SCHEMAS, leases.SCHEMA]) as state,
        Audit.open(home / "audit", max_bytes=8 << 20) as audit,
        store(home, state, clock) as opened,
        open_credentials(
            state,
            around(opened),
            audit,
            Netguard(LOOPBACK),
            key=ONCE_KEY,
            base_url=lambda: url,
            clock=clock,
        ) as part,
    ):
        app = build_http(
            [part.vault_face, part.login_face], key=Secret(KEY), audit=audit, doors=part.login_face.doors()
        )
        async with serve(app, host="127.0.0.1", port=0, key=Secret(KEY), closing=asyncio.Event()) as address:
            url = address.url
            yield Broker(url, home, part, opened, state, audit, clock)


def everything_below(directory: Path) -> bytes:
    """What all files of a directory hold, one after another."""
    found = bytearray()
    for root, _, names in os.walk(directory):
        for name in names:
            found += (Path(root) / name).read_bytes()
    return bytes(found)
