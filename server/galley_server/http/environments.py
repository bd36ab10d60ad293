"""`/v1/environments`: what sandboxes are made from."""

from galley_server.http.answer import Json, page, resource
from galley_server.http.boundary import Operation, Paths
from galley_server.http.call import Call
from galley_server.http.query import flag, text, whole
from galley_server.runtime.environments import Environments
from galley_server.wire.environment import EnvironmentCreate, EnvironmentUpdate
from galley_server.wire.query import EnvironmentQuery

_LIST = {"limit": whole, "page": text, "include_archived": flag}


class EnvironmentFace:
    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def paths(self) -> Paths:
        return {
            "/v1/environments": {"POST": Operation(self.create), "GET": Operation(self.list, _LIST)},
            "/v1/environments/{environment_id}": {
                "GET": Operation(self.retrieve),
                "POST": Operation(self.update),
                "DELETE": Operation(self.delete),
            },
            "/v1/environments/{environment_id}/archive": {"POST": Operation(self.archive)},
        }

    async def create(self, call: Call) -> Json:
        request = await call.json(EnvironmentCreate)
        return resource(await self._environments.create(request, once=call.once()))

    async def list(self, call: Call) -> Json:
        return page(await self._environments.list(call.query(EnvironmentQuery)))

    async def retrieve(self, call: Call) -> Json:
        return resource(await self._environments.retrieve(call.param("environment_id")))

    async def update(self, call: Call) -> Json:
        request = await call.json(EnvironmentUpdate)
        return resource(await self._environments.update(call.param("environment_id"), request, once=call.once()))

    async def delete(self, call: Call) -> Json:
        await call.nothing()
        return resource(await self._environments.delete(call.param("environment_id")))

    async def archive(self, call: Call) -> Json:
        await call.nothing()
        return resource(await self._environments.archive(call.param("environment_id"), once=call.once()))
