"""Which sessions still need a sandbox: what the hands ask of the log."""

from collections.abc import Collection

from galley_server.errors import NotFound
from galley_server.log.store import Summaries
from galley_server.log.summary import Summary


class Liveness:
    def __init__(self, summaries: Summaries[Summary]) -> None:
        self._summaries = summaries

    async def alive(self, session_ids: Collection[str]) -> Collection[str]:
        """Return those of `session_ids` that are neither archived, deleted nor terminated."""
        return {session_id for session_id in session_ids if await self._is_alive(session_id)}

    async def _is_alive(self, session_id: str) -> bool:
        try:
            summary = await self._summaries.summary(session_id)
        except NotFound:
            return False
        return summary.archived_at is None and summary.status != "terminated"
