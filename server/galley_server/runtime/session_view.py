"""A session as the API shows it, from its summary and the rows that the summary names."""

from collections import OrderedDict
from datetime import datetime
from typing import Final

from galley_server.log.internal import SessionChanged, SessionCreated
from galley_server.log.log import Log
from galley_server.log.row import Row
from galley_server.log.summary import Summary
from galley_server.wire.agent import SessionAgent
from galley_server.wire.resource import FileResource
from galley_server.wire.session import Session, SessionStats

_KEPT: Final = 256


def show_session(
    session_id: str, summary: Summary, agent: SessionAgent, resources: tuple[FileResource, ...], *, now: datetime
) -> Session:
    """Pure. A clock that runs counts up to `now`; a terminated session's clocks stand still."""
    running = 0.0 if summary.running_since is None else _seconds(summary.running_since, now)
    active = round(summary.usage.active_seconds + running, 3)
    end = summary.updated_at if summary.status == "terminated" else now
    return Session(
        id=session_id,
        status=summary.shown_status,
        title=summary.title,
        agent=agent,
        environment_id=summary.environment_id,
        resources=resources,
        vault_ids=summary.vault_ids,
        metadata=summary.metadata,
        usage=summary.usage.model_copy(update={"active_seconds": active}),
        stats=SessionStats(active_seconds=active, duration_seconds=_seconds(summary.created_at, end)),
        created_at=summary.created_at,
        updated_at=summary.updated_at,
        archived_at=summary.archived_at,
    )


class SessionViews:
    """Shows sessions, keeping the snapshots of those that were looked at last: a row never changes."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kept: OrderedDict[tuple[str, int], SessionCreated | SessionChanged] = OrderedDict()

    async def show(self, session_id: str, summary: Summary, *, now: datetime) -> Session:
        agent = await self.agent(session_id, summary)
        resources = (await self._content(session_id, summary.resources_row)).resources
        return show_session(session_id, summary, agent, resources or (), now=now)

    async def agent(self, session_id: str, summary: Summary) -> SessionAgent:
        """Return the agent as the session runs it now."""
        agent = (await self._content(session_id, summary.agent_row)).agent
        assert agent is not None, f"{session_id}: row {summary.agent_row} holds no agent"
        return agent

    async def _content(self, session_id: str, seq: int) -> SessionCreated | SessionChanged:
        key = (session_id, seq)
        found = self._kept.get(key)
        if found is None:
            (row,) = await self._log.read(session_id, after=seq - 1, limit=1)
            found = self._kept[key] = _parse(row)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return found


def _parse(row: Row) -> SessionCreated | SessionChanged:
    model = SessionCreated if row.type == "internal.session_created" else SessionChanged
    return model.model_validate_json(row.body)


def _seconds(since: datetime, until: datetime) -> float:
    return max(0.0, round((until - since).total_seconds(), 3))
