"""`/v1/sessions`: running instances of agents."""

from galley_server.http.answer import Json, page, resource
from galley_server.http.boundary import Operation, Paths
from galley_server.http.call import Call
from galley_server.http.query import flag, text, time, whole
from galley_server.runtime.sessions import Sessions
from galley_server.wire.query import SessionQuery
from galley_server.wire.session_request import SessionCreate, SessionUpdate

_LIST = {
    "agent_id": text,
    "agent_version": whole,
    "created_at[gt]": time,
    "created_at[gte]": time,
    "created_at[lt]": time,
    "created_at[lte]": time,
    "deployment_id": text,
    "include_archived": flag,
    "limit": whole,
    "memory_store_id": text,
    "order": text,
    "page": text,
    "statuses[]": text,
}


class SessionFace:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def paths(self) -> Paths:
        return {
            "/v1/sessions": {"POST": Operation(self.create), "GET": Operation(self.list, _LIST)},
            "/v1/sessions/{session_id}": {
                "GET": Operation(self.retrieve),
                "POST": Operation(self.update),
                "DELETE": Operation(self.delete),
            },
            "/v1/sessions/{session_id}/archive": {"POST": Operation(self.archive)},
        }

    async def create(self, call: Call) -> Json:
        request = await call.json(SessionCreate)
        return resource(await self._sessions.create(request, once=call.once()))

    async def list(self, call: Call) -> Json:
        return page(await self._sessions.list(call.query(SessionQuery)))

    async def retrieve(self, call: Call) -> Json:
        return resource(await self._sessions.retrieve(call.param("session_id")))

    async def update(self, call: Call) -> Json:
        request = await call.json(SessionUpdate)
        return resource(await self._sessions.update(call.param("session_id"), request, once=call.once()))

    async def delete(self, call: Call) -> Json:
        await call.nothing()
        return resource(await self._sessions.delete(call.param("session_id")))

    async def archive(self, call: Call) -> Json:
        await call.nothing()
        return resource(await self._sessions.archive(call.param("session_id"), once=call.once()))
