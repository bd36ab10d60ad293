"""A store over the Vault test server, with the server at hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from galley_vault_proxy.errors import StoreUnavailable
from galley_vault_proxy.settings import VaultSettings
from galley_vault_proxy.store.names import vault_name
from galley_vault_proxy.store.port import SecretRef
from galley_vault_proxy.store.vault_store import VaultStore

from tests.contract.secret_store_kit import fields, later, place_of, proxy_token, vault_store
from tests.vault_server.server import Running, Seen, TestVault, running

REF: Final = SecretRef("vlt_one", "vcrd_one")
OTHER: Final = SecretRef("vlt_two", "vcrd_two")
SESSION: Final = "sesn_one"


@dataclass(frozen=True)
class VaultBench:
    store: VaultStore
    server: Running
    settings: VaultSettings
    home: Path
    began: list[int] = field(default_factory=lambda: [0])

    @property
    def vault(self) -> TestVault:
        return self.server.vault

    def mark(self) -> None:
        """What the server is asked from now on counts as new."""
        self.began[0] = len(self.vault.seen)

    def new(self, word: str = "") -> list[Seen]:
        return [seen for seen in self.vault.seen[self.began[0] :] if word in seen.path]

    async def read(self, ref: SecretRef = REF, *, fresh: bool = False) -> str:
        return (await self.store.read(SESSION, ref, fresh=fresh)).fields["token"].reveal()

    def own_tokens(self) -> list[str]:
        """The session tokens that live, by the name of their vault."""
        tokens = self.vault.run(lambda: list(self.vault.root.tokens.by_id.values()))
        return sorted(str((token.meta or {}).get("vault")) for token in tokens if token.role)


@contextmanager
def checked_server() -> Iterator[Running]:
    """The test server; what it did not know, or came without its session's name, fails the test."""
    with running() as server:
        yield server
        assert server.vault.unsupported == []
        assert [seen.line for seen in server.vault.seen if not seen.session] == []


@asynccontextmanager
async def vault_bench(
    home: Path, *, timeout_s: float = 10.0, cache_ttl_s: float = 30.0, drain_s: float = 5.0
) -> AsyncIterator[VaultBench]:
    """A session that may read both vaults, each with a secret."""
    with checked_server() as server:
        place = place_of(server.vault)
        settings = place.settings(await proxy_token(place), timeout_s=timeout_s)
        async with vault_store(settings, home, cache_ttl_s=cache_ttl_s, drain_s=drain_s) as store:
            for ref in (REF, OTHER):
                await store.write(ref, fields(token=f"of {ref.vault_id}"), expected=0)
            await store.open_session(SESSION, (REF.vault_id, OTHER.vault_id), later())
            bench = VaultBench(store, server, settings, home)
            bench.mark()
            yield bench


def kv_path(ref: SecretRef) -> str:
    return f"secret/data/galley/{vault_name(ref.vault_id)}"


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """For what happens by itself a moment later. An unavailable store counts as not yet. Bounded."""
    for _ in range(200):
        try:
            if await look():
                return
        except StoreUnavailable:
            pass
        await asyncio.sleep(0.04)
    raise AssertionError("it did not happen within 8 s")
