"""Agents: versioned recipes, every version kept."""

import sqlite3
from collections.abc import Callable
from typing import Final

from galley_server.errors import Conflict, InvalidRequest, NotFound
from galley_server.ids import new_id
from galley_server.log.answers import remember
from galley_server.log.database import Database
from galley_server.log.instant import from_micros, to_micros
from galley_server.runtime import cursor, recipe
from galley_server.runtime.clock import Clock, first_shown_as, last_shown_as
from galley_server.runtime.idempotency import Idempotency, Once
from galley_server.wire.agent import Agent
from galley_server.wire.agent_request import AgentCreate, AgentToolsetParams, AgentUpdate
from galley_server.wire.page import Page
from galley_server.wire.query import AgentQuery, PageQuery

DEFAULT_NAME: Final = "Galley agent"
DEFAULT_DESCRIPTION: Final = "The agent a session gets when none is named: every built-in tool, each call allowed."

_ADD: Final = "INSERT INTO agents (id, version, created_at) VALUES (?, 1, ?)"
_ADD_VERSION: Final = "INSERT INTO agent_versions (agent, version, body) VALUES (?, ?, ?)"
_ADVANCE: Final = "UPDATE agents SET version = ? WHERE id = ?"
_ARCHIVE: Final = "UPDATE agents SET archived_at = ? WHERE id = ?"
_FIND: Final = """
SELECT body, archived_at FROM agents JOIN agent_versions AS versions ON versions.agent = agents.id
WHERE agents.id = ? AND versions.version = coalesce(?, agents.version)
"""
_LIST: Final = """
SELECT agents.pk, body, archived_at
FROM agents JOIN agent_versions AS versions ON versions.agent = agents.id AND versions.version = agents.version
WHERE agents.pk < ? AND created_at BETWEEN ? AND ? AND (? OR archived_at IS NULL)
ORDER BY agents.pk DESC LIMIT ?
"""
_VERSIONS: Final = """
SELECT versions.version, body, archived_at
FROM agents JOIN agent_versions AS versions ON versions.agent = agents.id
WHERE agents.id = ? AND versions.version < ?
ORDER BY versions.version DESC LIMIT ?
"""
_DEFAULT: Final = "SELECT id, made_from FROM defaults WHERE name = 'agent'"
_SET_DEFAULT: Final = """
INSERT INTO defaults (name, id, made_from) VALUES ('agent', ?, ?)
ON CONFLICT (name) DO UPDATE SET id = excluded.id, made_from = excluded.made_from
"""
_LAST: Final = 2**62


class Agents:
    def __init__(self, database: Database, once: Once, *, default_model: str, clock: Clock) -> None:
        self._database = database
        self._once = once
        self._default_model = default_model
        self._clock = clock

    async def create(self, request: AgentCreate, *, once: Idempotency | None = None) -> Agent:
        agent = recipe.new_agent(request, agent_id=new_id("agent"), at=self._clock())
        return await self._effect(once, lambda connection: _add(connection, agent))

    async def retrieve(self, agent_id: str, version: int | None = None) -> Agent:
        """Return the agent as it is, or as it was. Raises NotFound."""
        return await self._database.read(lambda connection: _find(connection, agent_id, version))

    async def update(self, agent_id: str, request: AgentUpdate, *, once: Idempotency | None = None) -> Agent:
        """Make the next version; an update that changes nothing returns the version there is."""

        def change(connection: sqlite3.Connection) -> Agent:
            agent = _find(connection, agent_id)
            if "version" in request.model_fields_set and request.version != agent.version:
                raise Conflict(
                    f"version: {agent_id} is at version {agent.version}, not {request.version}; retrieve it first"
                )
            if agent.archived_at is not None:
                raise InvalidRequest(f"{agent_id} is archived and cannot be changed")
            return _advance(connection, agent, recipe.updated(agent, request, at=self._clock()))

        return await self._effect(once, change)

    async def archive(self, agent_id: str, *, once: Idempotency | None = None) -> Agent:
        """Archive for good. Sessions go on; no new one can be made from it."""

        def archive(connection: sqlite3.Connection) -> Agent:
            agent = _find(connection, agent_id)
            if agent.archived_at is not None:
                return agent
            at = self._clock()
            connection.execute(_ARCHIVE, (to_micros(at), agent_id))
            return agent.model_copy(update={"archived_at": at})

        return await self._effect(once, archive)

    async def list(self, query: AgentQuery) -> Page[Agent]:
        """Newest first."""
        before = cursor.position(query.page, "agents") or _LAST
        earliest = 0 if query.created_at_gte is None else to_micros(first_shown_as(query.created_at_gte))
        latest = _LAST if query.created_at_lte is None else to_micros(last_shown_as(query.created_at_lte))
        values = (before, earliest, latest, query.include_archived, query.limit + 1)
        return await self._page("agents", _LIST, values, query.limit)

    async def versions(self, agent_id: str, query: PageQuery) -> Page[Agent]:
        """Newest first."""
        await self.retrieve(agent_id)
        before = cursor.position(query.page, agent_id) or _LAST
        return await self._page(agent_id, _VERSIONS, (agent_id, before, query.limit + 1), query.limit)

    async def default(self) -> Agent:
        """Return the agent of sessions that name none. It follows GALLEY_MODEL, and is replaced when archived."""
        known = await self._database.read(lambda connection: connection.execute(_DEFAULT).fetchone())
        if known is not None and known[1] == self._default_model:
            agent = await self.retrieve(known[0])
            if agent.archived_at is None:
                return agent
        return await self._database.write(self._make_default)

    def _make_default(self, connection: sqlite3.Connection) -> Agent:
        known = connection.execute(_DEFAULT).fetchone()
        stored = None if known is None else _find(connection, known[0])
        if stored is not None and stored.archived_at is None:
            request = AgentUpdate(model=self._default_model)
            agent = stored
            if known[1] != self._default_model:
                agent = _advance(connection, stored, recipe.updated(stored, request, at=self._clock()))
        else:
            agent = _add(
                connection,
                recipe.new_agent(
                    AgentCreate(
                        name=DEFAULT_NAME,
                        description=DEFAULT_DESCRIPTION,
                        model=self._default_model,
                        tools=(AgentToolsetParams(type="agent_toolset_20260401"),),
                    ),
                    agent_id=new_id("agent"),
                    at=self._clock(),
                ),
            )
        connection.execute(_SET_DEFAULT, (agent.id, self._default_model))
        return agent

    async def _page(self, kind: str, sql: str, values: tuple[str | int | bool, ...], limit: int) -> Page[Agent]:
        found = await self._database.read(lambda connection: connection.execute(sql, values).fetchall())
        agents = tuple(_agent(body, archived_at) for _, body, archived_at in found[:limit])
        more = cursor.encode(kind, found[limit - 1][0]) if len(found) > limit else None
        return Page(agents, more)

    async def _effect(self, once: Idempotency | None, change: Callable[[sqlite3.Connection], Agent]) -> Agent:
        def write(connection: sqlite3.Connection) -> Agent:
            agent = change(connection)
            if once is not None:
                answer = agent.model_dump_json().encode()
                remember(connection, once.key, once.fingerprint, answer, at=self._clock())
            return agent

        async def again(answer: bytes) -> Agent:
            return Agent.model_validate_json(answer)

        return await self._once.run(once, lambda: self._database.write(write), again)


def _add(connection: sqlite3.Connection, agent: Agent) -> Agent:
    connection.execute(_ADD, (agent.id, to_micros(agent.created_at)))
    connection.execute(_ADD_VERSION, (agent.id, agent.version, agent.model_dump_json().encode()))
    return agent


def _advance(connection: sqlite3.Connection, stored: Agent, changed: Agent) -> Agent:
    if changed.version != stored.version:
        connection.execute(_ADD_VERSION, (changed.id, changed.version, changed.model_dump_json().encode()))
        connection.execute(_ADVANCE, (changed.version, changed.id))
    return changed


def _find(connection: sqlite3.Connection, agent_id: str, version: int | None = None) -> Agent:
    found = connection.execute(_FIND, (agent_id, version)).fetchone()
    if found is not None:
        return _agent(*found)
    if version is not None and connection.execute(_FIND, (agent_id, None)).fetchone() is not None:
        raise NotFound(f"Agent {agent_id} has no version {version}.")
    raise NotFound(f"Agent {agent_id[:80]} was not found.")


def _agent(body: bytes, archived_at: int | None) -> Agent:
    agent = Agent.model_validate_json(body)
    return agent if archived_at is None else agent.model_copy(update={"archived_at": from_micros(archived_at)})
