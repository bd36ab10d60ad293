"""`/v1/agents`: versioned recipes."""

from galley_server.http.answer import Json, page, resource
from galley_server.http.boundary import Operation, Paths
from galley_server.http.call import Call
from galley_server.http.query import flag, text, time, whole
from galley_server.runtime.agents import Agents
from galley_server.wire.agent_request import AgentCreate, AgentUpdate
from galley_server.wire.base import Wire
from galley_server.wire.bounds import Version
from galley_server.wire.query import AgentQuery, PageQuery

_PAGE = {"limit": whole, "page": text}
_LIST = {**_PAGE, "created_at[gte]": time, "created_at[lte]": time, "include_archived": flag}


class OneVersion(Wire):
    version: Version | None = None


class AgentFace:
    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    def paths(self) -> Paths:
        return {
            "/v1/agents": {"POST": Operation(self.create), "GET": Operation(self.list, _LIST)},
            "/v1/agents/{agent_id}": {
                "GET": Operation(self.retrieve, {"version": whole}),
                "POST": Operation(self.update),
            },
            "/v1/agents/{agent_id}/archive": {"POST": Operation(self.archive)},
            "/v1/agents/{agent_id}/versions": {"GET": Operation(self.versions, _PAGE)},
        }

    async def create(self, call: Call) -> Json:
        request = await call.json(AgentCreate)
        return resource(await self._agents.create(request, once=call.once()))

    async def list(self, call: Call) -> Json:
        return page(await self._agents.list(call.query(AgentQuery)))

    async def retrieve(self, call: Call) -> Json:
        version = call.query(OneVersion).version
        return resource(await self._agents.retrieve(call.param("agent_id"), version=version))

    async def update(self, call: Call) -> Json:
        request = await call.json(AgentUpdate)
        return resource(await self._agents.update(call.param("agent_id"), request, once=call.once()))

    async def archive(self, call: Call) -> Json:
        await call.nothing()
        return resource(await self._agents.archive(call.param("agent_id"), once=call.once()))

    async def versions(self, call: Call) -> Json:
        return page(await self._agents.versions(call.param("agent_id"), call.query(PageQuery)))
