"""Environments: what sandboxes are made from."""

import sqlite3
from collections.abc import Callable
from typing import Final

from galley_server.errors import Conflict, InvalidRequest, NotFound
from galley_server.ids import new_id
from galley_server.log.answers import remember
from galley_server.log.database import Database
from galley_server.log.instant import from_micros, to_micros
from galley_server.runtime import cursor
from galley_server.runtime.clock import Clock
from galley_server.runtime.idempotency import Idempotency, Once
from galley_server.runtime.recipe import patched
from galley_server.wire.environment import (
    CloudConfig,
    CloudConfigParams,
    Environment,
    EnvironmentCreate,
    EnvironmentUpdate,
    Limited,
    LimitedParams,
    Networking,
    NetworkingParam,
    Unrestricted,
)
from galley_server.wire.page import DeletedEnvironment, Page
from galley_server.wire.query import EnvironmentQuery

DEFAULT_NAME: Final = "Galley environment"

_ADD: Final = "INSERT INTO environments (id, name, body) VALUES (?, ?, ?)"
_CHANGE: Final = "UPDATE environments SET name = ?, body = ? WHERE id = ?"
_ARCHIVE: Final = "UPDATE environments SET archived_at = ? WHERE id = ?"
_DELETE: Final = "DELETE FROM environments WHERE id = ?"
_FIND: Final = "SELECT body, archived_at FROM environments WHERE id = ?"
_NAMED: Final = "SELECT id FROM environments WHERE name = ? AND archived_at IS NULL"
_LIST: Final = """
SELECT pk, body, archived_at FROM environments
WHERE pk < ? AND (? OR archived_at IS NULL) ORDER BY pk DESC LIMIT ?
"""
_DEFAULT: Final = "SELECT id FROM defaults WHERE name = 'environment'"
_SET_DEFAULT: Final = """
INSERT INTO defaults (name, id, made_from) VALUES ('environment', ?, '')
ON CONFLICT (name) DO UPDATE SET id = excluded.id
"""
_LAST: Final = 2**62


class Environments:
    def __init__(self, database: Database, once: Once, *, clock: Clock) -> None:
        self._database = database
        self._once = once
        self._clock = clock

    async def create(self, request: EnvironmentCreate, *, once: Idempotency | None = None) -> Environment:
        environment = self._new(request)
        return await self._effect(once, lambda connection: _add(connection, environment))

    async def retrieve(self, environment_id: str) -> Environment:
        """Raises NotFound."""
        return await self._database.read(lambda connection: _find(connection, environment_id))

    async def update(
        self, environment_id: str, request: EnvironmentUpdate, *, once: Idempotency | None = None
    ) -> Environment:
        """Change what is given. Sandboxes that exist stay as they are."""

        def change(connection: sqlite3.Connection) -> Environment:
            stored = _find(connection, environment_id)
            if stored.archived_at is not None:
                raise InvalidRequest(
                    f"{environment_id} is archived and cannot be changed", error_code="environment_archived"
                )
            changed = updated(stored, request)
            if changed == stored:
                return stored
            changed = changed.model_copy(update={"updated_at": self._clock()})
            _claim_name(connection, changed)
            connection.execute(_CHANGE, (changed.name, changed.model_dump_json().encode(), changed.id))
            return changed

        return await self._effect(once, change)

    async def archive(self, environment_id: str, *, once: Idempotency | None = None) -> Environment:
        """Archive for good. Sessions go on; no new one can be made from it."""

        def archive(connection: sqlite3.Connection) -> Environment:
            stored = _find(connection, environment_id)
            if stored.archived_at is not None:
                return stored
            at = self._clock()
            connection.execute(_ARCHIVE, (to_micros(at), environment_id))
            return stored.model_copy(update={"archived_at": at})

        return await self._effect(once, archive)

    async def delete(self, environment_id: str) -> DeletedEnvironment:
        """Forget the environment. Sessions made from it go on."""

        def delete(connection: sqlite3.Connection) -> None:
            _find(connection, environment_id)
            connection.execute(_DELETE, (environment_id,))

        await self._database.write(delete)
        return DeletedEnvironment(id=environment_id)

    async def list(self, query: EnvironmentQuery) -> Page[Environment]:
        """Newest first."""
        before = cursor.position(query.page, "environments") or _LAST
        values = (before, query.include_archived, query.limit + 1)
        found = await self._database.read(lambda connection: connection.execute(_LIST, values).fetchall())
        environments = tuple(_environment(body, archived_at) for _, body, archived_at in found[: query.limit])
        more = cursor.encode("environments", found[query.limit - 1][0]) if len(found) > query.limit else None
        return Page(environments, more)

    async def default(self) -> Environment:
        """Return the environment of sessions that name none; it is made anew when archived or deleted."""
        stored = await self._database.read(_default)
        return await self._database.write(self._make_default) if stored is None else stored

    def _make_default(self, connection: sqlite3.Connection) -> Environment:
        stored = _default(connection)
        if stored is None:
            # Somebody may have given the name to an environment of their own: then that one will do.
            named = connection.execute(_NAMED, (DEFAULT_NAME,)).fetchone()
            stored = (
                _add(connection, self._new(EnvironmentCreate(name=DEFAULT_NAME)))
                if named is None
                else _find(connection, named[0])
            )
            connection.execute(_SET_DEFAULT, (stored.id,))
        return stored

    def _new(self, request: EnvironmentCreate) -> Environment:
        at = self._clock()
        return Environment(
            id=new_id("env"),
            name=request.name,
            description=request.description,
            config=CloudConfig() if request.config is None else merged(CloudConfig(), request.config),
            metadata=request.metadata,
            created_at=at,
            updated_at=at,
            archived_at=None,
        )

    async def _effect(
        self, once: Idempotency | None, change: Callable[[sqlite3.Connection], Environment]
    ) -> Environment:
        def write(connection: sqlite3.Connection) -> Environment:
            environment = change(connection)
            if once is not None:
                answer = environment.model_dump_json().encode()
                remember(connection, once.key, once.fingerprint, answer, at=self._clock())
            return environment

        async def again(answer: bytes) -> Environment:
            return Environment.model_validate_json(answer)

        return await self._once.run(once, lambda: self._database.write(write), again)


def updated(stored: Environment, request: EnvironmentUpdate) -> Environment:
    """Pure. Null clears the description; elsewhere it means the same as left out."""
    changes: dict[str, object] = {"metadata": patched(stored.metadata, request.metadata, empty_deletes=True)}
    if request.name is not None:
        changes["name"] = request.name
    if "description" in request.model_fields_set:
        changes["description"] = request.description
    if request.config is not None:
        changes["config"] = merged(stored.config, request.config)
    return stored.model_copy(update=changes)


def merged(stored: CloudConfig, request: CloudConfigParams) -> CloudConfig:
    """Field by field; a policy of another kind replaces the stored one."""
    if request.networking is None:
        return stored
    return stored.model_copy(update={"networking": _networking(stored.networking, request.networking)})


def _networking(stored: Networking, request: NetworkingParam) -> Networking:
    if not isinstance(request, LimitedParams):
        return Unrestricted()
    base = (
        stored
        if isinstance(stored, Limited)
        else Limited(allowed_hosts=(), allow_mcp_servers=False, allow_package_managers=False)
    )
    return base.model_copy(update=request.model_dump(exclude={"type"}, exclude_none=True))


def _add(connection: sqlite3.Connection, environment: Environment) -> Environment:
    _claim_name(connection, environment)
    connection.execute(_ADD, (environment.id, environment.name, environment.model_dump_json().encode()))
    return environment


def _claim_name(connection: sqlite3.Connection, environment: Environment) -> None:
    holder = connection.execute(_NAMED, (environment.name,)).fetchone()
    if holder is not None and holder[0] != environment.id:
        raise Conflict(f"name: an environment called '{environment.name}' exists ({holder[0]}); choose another name")


def _find(connection: sqlite3.Connection, environment_id: str) -> Environment:
    found = connection.execute(_FIND, (environment_id,)).fetchone()
    if found is None:
        raise NotFound(f"Environment {environment_id[:80]} was not found.")
    return _environment(*found)


def _default(connection: sqlite3.Connection) -> Environment | None:
    known = connection.execute(_DEFAULT).fetchone()
    found = None if known is None else connection.execute(_FIND, known).fetchone()
    environment = None if found is None else _environment(*found)
    return None if environment is None or environment.archived_at is not None else environment


def _environment(body: bytes, archived_at: int | None) -> Environment:
    environment = Environment.model_validate_json(body)
    return (
        environment if archived_at is None else environment.model_copy(update={"archived_at": from_micros(archived_at)})
    )
