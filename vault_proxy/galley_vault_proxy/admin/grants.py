"""`/v1/grants` and `/v1/sessions`: the service identity makes grants and ends them."""

from collections.abc import Callable
from datetime import UTC, datetime

from starlette.types import ASGIApp

from galley_vault_proxy.admin.shapes import (
    GrantCreate,
    IssuedGrant,
    ListedSession,
    ListedSessions,
    RevokedGrant,
    RevokedSession,
    SessionListParams,
    SessionParams,
    shown,
)
from galley_vault_proxy.audit import Audit, AuditLine
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.answer import resource
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call
from galley_vault_proxy.http.query import text, whole
from galley_vault_proxy.http.validation import take


class GrantFace:
    """`admissible` says whether a server of the grant is one that this proxy can reach at all (a stdio name)."""

    def __init__(
        self,
        registry: Registry,
        audit: Audit,
        *,
        stdio: frozenset[str] = frozenset(),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry = registry
        self._audit = audit
        self._stdio = stdio
        self._clock = clock

    def paths(self) -> Paths:
        return {
            "/v1/grants": {"POST": Operation(self._create)},
            "/v1/grants/{grant_id}": {"GET": Operation(self._retrieve), "DELETE": Operation(self._revoke)},
            "/v1/sessions": {"GET": Operation(self._list_sessions, {"after": text, "limit": whole})},
            "/v1/sessions/{session_id}": {"DELETE": Operation(self._end_session)},
        }

    async def _create(self, call: Call) -> ASGIApp:
        asked = await call.json(GrantCreate)
        self._require_known(asked)
        grant = asked.grant(self._clock())
        # The line comes first: what cannot be recorded is not done.
        self._audit.record(
            AuditLine(
                "grant.mint",
                "allow",
                who="service",
                session_id=grant.session_id,
                grant_id=grant.id,
                thread_id=grant.thread_id,
            )
        )
        token = await self._registry.issue(grant)
        return resource(
            IssuedGrant(
                id=grant.id,
                token=token,
                session_id=grant.session_id,
                thread_id=grant.thread_id,
                expires_at=grant.expires_at,
            )
        )

    async def _retrieve(self, call: Call) -> ASGIApp:
        return resource(shown(await self._registry.record(call.param("grant_id")), self._clock()))

    async def _revoke(self, call: Call) -> ASGIApp:
        await call.nothing()
        found = await self._registry.revoke_grant(call.param("grant_id"))
        self._audit.record(
            AuditLine("grant.revoke", "allow", who="service", session_id=found.session_id, grant_id=found.id)
        )
        return resource(RevokedGrant(id=found.id))

    async def _list_sessions(self, call: Call) -> ASGIApp:
        asked = call.query(SessionListParams)
        found = await self._registry.listed(after=asked.after, limit=asked.limit + 1)
        page = tuple(ListedSession(id=one.id, expires_at=one.expires_at) for one in found[: asked.limit])
        return resource(ListedSessions(data=page, has_more=len(found) > asked.limit))

    async def _end_session(self, call: Call) -> ASGIApp:
        await call.nothing()
        # Checked here too: what is no id, a token above all, must not get into the state.
        session_id = take(SessionParams, {"session_id": call.param("session_id")}).session_id
        closing = await self._registry.revoke_session(session_id)
        self._audit.record(AuditLine("session.revoke", "allow", who="service", session_id=closing.session_id))
        return resource(
            RevokedSession(
                id=closing.session_id,
                revoked_grants=len(closing.grant_ids),
                leases="revoked" if closing.settled else "pending",
            )
        )

    def _require_known(self, asked: GrantCreate) -> None:
        for index, server in enumerate(asked.mcp_servers):
            name = server.url.removeprefix("stdio:")
            if server.url.startswith("stdio:") and name not in self._stdio:
                known = ", ".join(sorted(self._stdio)) or "none"
                raise InvalidRequest(
                    f"mcp_servers.{index}.url: this proxy runs no stdio server of that name; it runs: {known}"
                )
