"""The living credentials of each vault, in memory: loaded when first asked for, dropped when anybody changes them.

Without secrets. Changes made here count at once; those of other processes within a fraction of a second.
"""

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from galley_vault_proxy.credentials import rows
from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.shapes import match_key
from galley_vault_proxy.errors import Unavailable
from galley_vault_proxy.state import State

_POLL_S: Final = 0.2
# What others archived must not be used on and on because nobody can see it.
_BLIND_S: Final = 5.0
_MOST_VAULTS: Final = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VaultEntries:
    """The living credentials of a vault by what finds them."""

    by_key: Mapping[str, Stored]


class Directory:
    def __init__(self, state: State) -> None:
        self._state = state
        self._vaults: OrderedDict[str, VaultEntries] = OrderedDict()
        self._change = 0
        self._version = -1
        self._seen = 0.0
        # Goes up with everything that is dropped, so that what was read before is not kept after.
        self._generation = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, state: State) -> AsyncIterator[Self]:
        directory = cls(state)
        await directory._look()
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(directory._follow(), name="credentials-follow")
            try:
                yield directory
            finally:
                following.cancel()

    async def vault(self, vault_id: str) -> VaultEntries:
        """A vault that is not there has no credentials. Raises Unavailable when changes cannot be seen."""
        if asyncio.get_running_loop().time() - self._seen > _BLIND_S:
            raise Unavailable("changes of credentials cannot be seen now, so none is used")
        found = self._vaults.get(vault_id)
        if found is not None:
            self._vaults.move_to_end(vault_id)
            return found
        generation = self._generation
        living = await self._state.read(lambda db: rows.living(db, vault_id))
        entries = VaultEntries({match_key(stored.shown.auth): stored for stored in living})
        if generation == self._generation:
            self._vaults[vault_id] = entries
            if len(self._vaults) > _MOST_VAULTS:
                self._vaults.popitem(last=False)
        return entries

    def forget(self, vault_id: str) -> None:
        """To be called after each change, before anybody is told that it was made."""
        self._generation += 1
        self._vaults.pop(vault_id, None)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self._look()
            except Unavailable as error:
                logger.error("changes of credentials cannot be seen: %s", error)

    async def _look(self) -> None:
        version = await self._state.version()
        if version != self._version:
            await self._catch_up()
            self._version = version
        self._seen = asyncio.get_running_loop().time()

    async def _catch_up(self) -> None:
        def look(db: sqlite3.Connection) -> tuple[int, frozenset[str] | None]:
            return rows.changes(db, self._change)

        self._change, changed = await self._state.read(look)
        if changed is None:
            self._generation += 1
            self._vaults.clear()
        for vault_id in changed or ():
            self.forget(vault_id)
