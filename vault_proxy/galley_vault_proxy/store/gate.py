"""The gate of a session: nothing new passes once it closes, and closing waits for what is on its way.

A lease issued while its token is revoked outlives the token. So a session's end refuses new calls first, waits
(bounded) for those in flight, and only then revokes; what arrives still later is revoked by its own id.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from galley_vault_proxy.errors import AccessRefused, SessionClosed


@dataclass(slots=True, eq=False)
class Gate:
    session_id: str
    vault_ids: frozenset[str]
    expires_at: datetime
    closing: bool = False
    _inside: int = 0
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def check(self, vault_id: str, now: datetime) -> None:
        """Raises SessionClosed, AccessRefused."""
        if self.closing or self.expires_at <= now:
            raise SessionClosed(f"{self.session_id} is closed: no secret is read for it")
        if vault_id not in self.vault_ids:
            raise AccessRefused(f"{vault_id} is not a vault of {self.session_id}")

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Hold the gate open for one call. Raises SessionClosed."""
        if self.closing:
            raise SessionClosed(f"{self.session_id} is closed: no secret is read for it")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self, *, timeout_s: float) -> bool:
        """Let nothing more in, and wait for those inside. False: somebody still is."""
        self.closing = True
        if not self._inside:
            return True
        self._empty.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
