"""`/v1/models`: what sessions can be run on."""

import json

from galley_server.http.answer import Json, resource
from galley_server.http.boundary import Operation, Paths
from galley_server.http.call import Call
from galley_server.http.query import text, whole
from galley_server.runtime.models import Models
from galley_server.wire.page import join_json
from galley_server.wire.query import ModelQuery

_LIST = {"after_id": text, "before_id": text, "lifecycle[]": text, "limit": whole}


class ModelFace:
    def __init__(self, models: Models) -> None:
        self._models = models

    def paths(self) -> Paths:
        return {
            "/v1/models": {"GET": Operation(self.list, _LIST)},
            "/v1/models/{model_id}": {"GET": Operation(self.retrieve)},
        }

    async def list(self, call: Call) -> Json:
        found = await self._models.list(call.query(ModelQuery))
        data = join_json(model.model_dump_json().encode() for model in found.data)
        about = {"has_more": found.has_more, "first_id": found.first_id, "last_id": found.last_id}
        return Json(b'{"data":%b,%b' % (data, json.dumps(about).encode()[1:]))

    async def retrieve(self, call: Call) -> Json:
        return resource(await self._models.retrieve(call.param("model_id")))
