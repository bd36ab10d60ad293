"""The request boundary: every request gets an id, every error the official envelope, every defect a traceback."""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from galley_vault_proxy.errors import InvalidRequest, NotFound, RequestError, Unauthenticated
from galley_vault_proxy.http.call import Call, Gone
from galley_vault_proxy.http.connection import TUNNEL
from galley_vault_proxy.http.envelope import InternalError, MethodNotAllowed, envelope, error_headers
from galley_vault_proxy.http.query import Kind, read
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret

OPEN: Final = frozenset({"/healthz", "/readyz"})
"""Paths behind no key: they say whether the proxy lives, and nothing else."""

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(rb"req_[A-Za-z0-9]{1,64}")


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path does, and the query parameters it takes."""

    handle: Callable[[Call], Awaitable[ASGIApp]]
    takes: Mapping[str, Kind] = field(default_factory=dict)


Paths: TypeAlias = Mapping[str, Mapping[str, Operation]]
"""Path templates, each with an operation per method."""


class Endpoint:
    """One path. A method it has no operation for is refused."""

    def __init__(self, operations: Mapping[str, Operation], *, body_limit: int) -> None:
        self._operations = operations
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.get(scope["method"])
        if operation is None:
            allow = ", ".join(sorted(self._operations))
            raise MethodNotAllowed(f"{scope['method']} is not a method of {scope['path']}: use {allow}", allow=allow)
        given = read(scope["query_string"], operation.takes)
        answer = await operation.handle(Call(scope, receive, given=given, body_limit=self._body_limit))
        await answer(scope, receive, send)


class Boundary:
    """Wraps the API under /v1 and the health checks. `refused` is told of everyone who came without the key."""

    def __init__(self, app: ASGIApp, key: Secret, *, refused: Callable[[], None] | None = None) -> None:
        self._app = app
        self._key = key
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _refuse_upgrade(receive, send)
            return
        reply = Reply(send, _request_id(scope["headers"]))
        scope["galley.request_id"] = reply.request_id
        try:
            self._admit(scope)
            await self._app(scope, receive, reply.send)
        except RequestError as error:
            await reply.refuse(error)
        except Gone:
            return
        except Exception:
            logger.exception("%s: %s %s failed", reply.request_id, scope["method"], scope["path"])
            await reply.refuse(InternalError())

    def _admit(self, scope: Scope) -> None:
        if scope.get("state", {}).get(TUNNEL) is not None:
            # A sandbox has no business here, whatever it sends along.
            raise NotFound("this connection came through a sandbox's tunnel: it reaches /mcp and nothing else")
        if scope["path"] in OPEN:
            return
        try:
            admit(scope["headers"], self._key)
        except RequestError:
            if self._refused is not None:
                self._refused()
            raise


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


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that whoever passes a request on has for it, so that one id finds it in both logs; else a new one."""
    for name, value in headers:
        if name == b"galley-request-id" and (given := _REQUEST_ID.fullmatch(value)) is not None:
            return given[0].decode()
    return new_id("req")


def admit(headers: Iterable[tuple[bytes, bytes]], key: Secret) -> None:
    """Raise Unauthenticated unless a header carries the service key, as `x-api-key` or as a bearer token.

    The SDKs may send both kinds, so one right key is enough; one kind sent twice is refused, because whatever stands
    in front of the proxy may have looked at the other one.
    """
    offered: dict[bytes, str] = {}
    for name, value in headers:
        if name not in (b"x-api-key", b"authorization"):
            continue
        if name in offered:
            raise InvalidRequest(f"{name.decode()}: given more than once")
        text = value.decode("latin-1")
        if name == b"authorization":
            kind, _, text = text.partition(" ")
            text = text.strip() if kind.lower() == "bearer" else ""
        offered[name] = text
    # Every candidate is compared, so that the time does not tell which one was close.
    if any([key.matches(candidate) for candidate in offered.values()]):
        return
    if offered:
        raise Unauthenticated(
            "invalid service key: send this proxy's own key, not a grant and not another server's key"
        )
    raise Unauthenticated("missing service key: send it as `x-api-key` or as `Authorization: Bearer`")


async def unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"{scope['path']} is not a path of this proxy")


async def _refuse_upgrade(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1008})
