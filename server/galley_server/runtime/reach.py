"""What a session may reach and whether it is over, from its log: what the vault proxy's grants are made of."""

from galley_server.errors import NotFound
from galley_server.hands.access import Access, access_of
from galley_server.log.internal import SessionCreated
from galley_server.log.log import Log
from galley_server.log.store import Summaries
from galley_server.log.summary import Summary
from galley_server.runtime.session_view import SessionViews


class SessionReach:
    def __init__(self, log: Log, summaries: Summaries[Summary]) -> None:
        self._log = log
        self._summaries = summaries
        self._views = SessionViews(log)

    async def access(self, session_id: str) -> Access:
        """Raises NotFound for a session that does not exist or is over."""
        summary = await self._summaries.summary(session_id)
        if _is_over(summary):
            raise NotFound(f"{session_id} is over")
        (first,) = await self._log.read(session_id, limit=1)
        created = SessionCreated.model_validate_json(first.body)
        agent = await self._views.agent(session_id, summary)
        return access_of(agent, created.networking, created.vault_ids)

    async def over(self, session_id: str) -> bool:
        """Whether there was such a session, and it is archived, terminated or deleted."""
        try:
            return _is_over(await self._summaries.summary(session_id))
        except NotFound:
            return await self._summaries.was_deleted(session_id)


def _is_over(summary: Summary) -> bool:
    return summary.archived_at is not None or summary.status == "terminated"
