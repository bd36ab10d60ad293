"""The request boundary: every request gets an id, every error the official envelope, every defect a traceback."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from galley_server.errors import NotFound, RequestError
from galley_server.http.call import Call, Gone
from galley_server.http.envelope import InternalError, MethodNotAllowed, envelope, error_headers
from galley_server.http.gate import admit
from galley_server.http.query import Kind, read
from galley_server.ids import new_id
from galley_server.secret import Secret

HEALTH: Final = "/healthz"
PAGES: Final = "/oauth/"
"""Where the vault proxy's pages are, to which authorization servers send browsers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path does, and the query parameters it takes; None: whoever it is passed on to knows."""

    handle: Callable[[Call], Awaitable[ASGIApp]]
    takes: Mapping[str, Kind] | None = field(default_factory=dict)


Paths: TypeAlias = Mapping[str, Mapping[str, Operation]]
"""Path templates, each with an operation per method."""


class Endpoint:
    """One path. A method it has no operation for is refused, HEAD too: an event stream would never end it."""

    def __init__(self, operations: Mapping[str, Operation], *, body_limit: int | None) -> None:
        self._operations = operations
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.get(scope["method"])
        if operation is None:
            allow = ", ".join(sorted(self._operations))
            raise MethodNotAllowed(f"{scope['method']} is not a method of {scope['path']}: use {allow}", allow=allow)
        given = {} if operation.takes is None else read(scope["query_string"], operation.takes)
        answer = await operation.handle(Call(scope, receive, given=given, body_limit=self._body_limit))
        await answer(scope, receive, send)


class Boundary:
    """Wraps everything the server answers over HTTP. Only the health check and pages for browsers are behind no key."""

    def __init__(self, app: ASGIApp, api_key: Secret) -> None:
        self._app = app
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _refuse_upgrade(receive, send)
            return
        reply = Reply(send, new_id("req"))
        scope["galley.request_id"] = reply.request_id
        try:
            if scope["path"] != HEALTH and not scope["path"].startswith(PAGES):
                admit(scope["headers"], self._api_key)
            await self._app(scope, receive, reply.send)
        except RequestError as error:
            await reply.refuse(error)
        except Gone:
            return
        except Exception:
            logger.exception("%s: %s %s failed", reply.request_id, scope["method"], scope["path"])
            await reply.refuse(InternalError())


class Reply:
    """The answer to one request: it carries the request's id, and is refused at most once."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self._send = send
        self._started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message["headers"] = [*message.get("headers", ()), (b"request-id", self.request_id.encode())]
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        if self._started:
            # The status is out already. What was begun must not look whole.
            raise ConnectionAbortedError(f"{self.request_id}: failed after its answer had begun") from error
        body = envelope(error, self.request_id)
        headers = [*error_headers(error), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


async def unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"{scope['path']} is not a path of this server")


async def _refuse_upgrade(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1008})
