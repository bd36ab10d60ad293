"""Purging: what must go from the secret store is written down first, and asked for until it is gone.

So a secret whose credential was archived, deleted, or never came to be does not outlive a sealed store or a crash.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final, Self

from galley_vault_proxy.credentials import rows
from galley_vault_proxy.errors import ProxyError, StoreUnavailable
from galley_vault_proxy.state import State
from galley_vault_proxy.store.port import SecretRef, SecretStore

_LOOK_S: Final = 30.0
_RETRY_S: Final = 2.0
_BATCH: Final = 100

logger = logging.getLogger(__name__)


class Purger:
    def __init__(self, state: State, store: SecretStore, clock: Callable[[], datetime]) -> None:
        self._state = state
        self._store = store
        self._clock = clock
        self._wake = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, state: State, store: SecretStore, clock: Callable[[], datetime]) -> AsyncIterator[Self]:
        purger = cls(state, store, clock)
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(purger._work(), name="purges")
            try:
                yield purger
            finally:
                working.cancel()

    async def purge(self, refs: Collection[SecretRef]) -> None:
        """Purge what has been written down, now. Raises StoreUnavailable; then it is asked for again and again."""
        try:
            for ref in refs:
                await self._purge(ref)
        except StoreUnavailable:
            self._wake.set()
            raise

    async def _purge(self, ref: SecretRef) -> None:
        await self._state.write(lambda db: rows.take_purge(db, ref))
        if ref.credential_id == rows.WHOLE_VAULT:
            await self._store.purge_vault(ref.vault_id)
        else:
            await self._store.purge(ref)
        await self._state.write(lambda db: rows.purged(db, ref))

    async def _work(self) -> None:
        while True:
            failed = await self._round()
            if failed:
                await asyncio.sleep(_RETRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _round(self) -> bool:
        """Whether something is left that should be gone."""
        try:
            for ref in await self._state.read(lambda db: rows.owed(db, self._clock(), limit=_BATCH)):
                await self._purge(ref)
        except ProxyError as error:
            logger.warning("purged secrets are still in the store, and are asked for again: %s", error)
            self._wake.set()
            return True
        return False
