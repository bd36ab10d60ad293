"""Answers with a JSON body."""

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from galley_vault_proxy.http.envelope import JSON_TYPE


class Json:
    """A body that is JSON already, sent as it is."""

    def __init__(self, body: bytes, *, status: int = 200) -> None:
        self._body = body
        self._status = status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            JSON_TYPE,
            (b"content-length", str(len(self._body)).encode()),
            # A grant's token must not lie in a cache on the way.
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def resource(model: BaseModel) -> Json:
    return Json(model.model_dump_json().encode())
