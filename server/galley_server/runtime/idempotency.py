"""Repeatable calls: a call with a key takes effect once, and every repetition gets the first answer.

The answer is kept in the transaction of the effect, so there is no instant at which one exists without the other, and
two calls at the same time cannot both take effect: the second one's transaction is undone.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel

from galley_server.errors import AlreadyAnswered, InvalidRequest, RequestError
from galley_server.log.answers import Remembered, recall, remember
from galley_server.log.database import Database
from galley_server.log.row import Row

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """`fingerprint` tells one request from another: a key is good for one request only."""

    key: str
    fingerprint: str


def remembered(once: Idempotency | None, answer: Callable[[Sequence[Row]], BaseModel]) -> Remembered | None:
    """What an append is to keep beside its rows, so that the answer can be given again."""
    return None if once is None else Remembered(once.key, once.fingerprint, lambda rows: to_json(answer(rows)))


def to_json(model: BaseModel) -> bytes:
    return model.model_dump_json().encode()


class Once:
    """Where answers are looked up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(
        self, once: Idempotency | None, effect: Callable[[], Awaitable[T]], again: Callable[[bytes], Awaitable[T]]
    ) -> T:
        """Run `effect`, which must remember its answer in its own transaction, or give an earlier answer `again`."""
        if once is None:
            return await effect()
        answer = await self._recall(once)
        if answer is not None:
            return await again(answer)
        try:
            return await effect()
        except (AlreadyAnswered, RequestError):
            # A twin of this call was faster. Its effect may also be what made this one break a rule.
            answer = await self._recall(once)
            if answer is None:
                raise
            return await again(answer)

    async def note(self, once: Idempotency | None, answer: bytes, *, at: datetime) -> None:
        """Remember the answer of a call that had nothing to do."""
        if once is not None:
            await self._database.write(
                lambda connection: remember(connection, once.key, once.fingerprint, answer, at=at)
            )

    async def _recall(self, once: Idempotency) -> bytes | None:
        found = await self._database.read(lambda connection: recall(connection, once.key))
        if found is None:
            return None
        if found.fingerprint != once.fingerprint:
            raise InvalidRequest(
                f"idempotency-key: '{once.key}' was used for another request; take a new key for a new request"
            )
        return found.answer
