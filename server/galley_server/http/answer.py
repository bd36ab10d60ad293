"""Answers with a JSON body."""

import json
from collections.abc import Iterable
from typing import Final, TypeVar

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from galley_server.http.envelope import JSON_TYPE
from galley_server.wire.page import Page, SessionPage, join_json

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_NULL: Final = b"null"


class Json:
    """A body that is JSON already, sent as it is."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [JSON_TYPE, (b"content-length", str(len(self._body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def resource(model: BaseModel) -> Json:
    return Json(model.model_dump_json().encode())


def page(found: Page[M]) -> Json:
    return listing((item.model_dump_json().encode() for item in found.data), found)


def listing(bodies: Iterable[bytes], found: Page[T]) -> Json:
    """A page whose items are JSON already. `prev_page` is there only where a list can be walked backwards."""
    before = b',"prev_page":%b' % _text(found.prev_page) if isinstance(found, SessionPage) else b""
    return Json(b'{"data":%b,"next_page":%b%b}' % (join_json(bodies), _text(found.next_page), before))


def _text(value: str | None) -> bytes:
    return _NULL if value is None else json.dumps(value).encode()
