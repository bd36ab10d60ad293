"""Repeatable calls: one with a key takes effect once, and every repetition gets the first answer.

What is kept is the answer, which holds no secret, and a keyed fingerprint of the request: without the key, which is
not in the state, nobody can try secrets against it.
"""

import hashlib
import hmac
import re
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from pydantic import BaseModel

from galley_vault_proxy.errors import InvalidRequest, RequestError
from galley_vault_proxy.grant.token import milliseconds
from galley_vault_proxy.state import State

KEPT_FOR: Final = timedelta(hours=48)
_KEY: Final = re.compile(r"[!-~]{1,255}")


class AlreadyAnswered(Exception):
    """A twin of this call was faster: what this one has begun is undone."""


class Once:
    """One repeatable call. Without a key it keeps nothing."""

    def __init__(self, key: str | None, fingerprint: str) -> None:
        self.key = key
        self.fingerprint = fingerprint

    @classmethod
    def of(cls, header: str | None, secret: bytes, *request: bytes) -> "Once":
        """`secret` keys the fingerprint. Raises InvalidRequest."""
        if header is None:
            return NEVER
        if not _KEY.fullmatch(header):
            raise InvalidRequest("idempotency-key: use 1 to 255 printable ASCII characters without blanks")
        whole = b"".join(len(part).to_bytes(8) + part for part in request)
        return cls(header, hmac.digest(secret, b"idempotency\0" + whole, hashlib.sha256).hex())

    def keep(self, db: sqlite3.Connection, answer: BaseModel, at: datetime) -> None:
        """Keep the answer in the transaction of the effect. Raises AlreadyAnswered."""
        if self.key is None:
            return
        db.execute("DELETE FROM credential_answers WHERE at < ?", (milliseconds(at - KEPT_FOR),))
        added = db.execute(
            "INSERT INTO credential_answers (key, fingerprint, answer, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self.key, self.fingerprint, answer.model_dump_json().encode(), milliseconds(at)),
        )
        if added.rowcount == 0:
            raise AlreadyAnswered

    async def run(self, state: State, effect: Callable[[], Awaitable[BaseModel]]) -> bytes:
        """Return the first answer, else what `effect` answers. Raises InvalidRequest when the key was used before."""
        found = await self._recall(state)
        if found is not None:
            return found
        try:
            return (await effect()).model_dump_json().encode()
        except (AlreadyAnswered, RequestError):
            # A twin's effect may also be what made this one break a rule.
            found = await self._recall(state)
            if found is None:
                raise
            return found

    async def _recall(self, state: State) -> bytes | None:
        if self.key is None:
            return None
        row = await state.read(
            lambda db: db.execute(
                "SELECT fingerprint, answer FROM credential_answers WHERE key = ?", (self.key,)
            ).fetchone()
        )
        if row is None:
            return None
        if not hmac.compare_digest(row[0], self.fingerprint):
            raise InvalidRequest(
                f"idempotency-key: '{self.key}' was used for another request; take a new key for a new request"
            )
        return bytes(row[1])


NEVER: Final = Once(None, "")
