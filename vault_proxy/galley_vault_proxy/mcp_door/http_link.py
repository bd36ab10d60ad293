"""Streamable HTTP as a link: what the bridge uses where the two sides are of different eras."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Final

from galley_vault_proxy.mcp_door.failure import RpcError, ServerFailed, ServerStatus
from galley_vault_proxy.mcp_door.fairness import Breaths, aside
from galley_vault_proxy.mcp_door.headers import RawHeaders, encoded
from galley_vault_proxy.mcp_door.jsonrpc import dump, read_from_server
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Unasked, Via, Wire
from galley_vault_proxy.mcp_door.relay import EVENTS, Relay, Upward, kind_of
from galley_vault_proxy.mcp_door.sse import EventSplitter, EventTooLarge, read_event
from galley_vault_proxy.mcp_door.upstream import ConnectionLost, Response
from galley_vault_proxy.mcp_door.wire import METHOD, MODERN_VERSIONS, NAME, NAMED_BY, SESSION, VERSION

_JSON: Final = (b"content-type", b"application/json")
_BOTH: Final = (b"accept", b"application/json, text/event-stream")
_AGAIN_S: Final = 1.0
_RETRIES: Final = 5


class HttpLink:
    """One server of one era. In the older one it begins with `initialize` and keeps the session that it is given."""

    def __init__(self, relay: Relay, limits: Limits, unasked: Unasked, *, modern: bool) -> None:
        self._relay = relay
        self._limits = limits
        self._unasked = unasked
        self._modern = modern
        self._session: bytes | None = None
        self._version: bytes | None = None
        self._via: Via | None = None

    def settled(self, version: str) -> None:
        """The handshake is over, and this is the revision that was agreed on."""
        self._version = version.encode("latin-1")

    async def ask(self, message: Wire, via: Via, headers: RawHeaders = ()) -> AsyncGenerator[Wire, None]:
        self._via = via
        answered = False
        try:
            async with self._relay.exchange(via.visit, via.screen, self._post(message, headers)) as response:
                if self._session is None and not self._modern:
                    self._session = _header(response, SESSION)
                async with aclosing(self._messages(response, via)) as messages:
                    async for got in messages:
                        answered = "method" not in got
                        yield got
                        if answered:
                            return
            raise ServerFailed("the server did not answer", reason="no_answer")
        except ConnectionLost:
            raise ServerFailed("the connection to the server was lost", reason="connection_lost") from None
        except EventTooLarge as error:
            raise ServerFailed(str(error), reason="event_too_large") from None
        finally:
            # Of the newer era the end of the connection says so by itself.
            if not answered and not self._modern and message["method"] != "initialize":
                await self._cancel(message["id"], via)

    async def tell(self, message: Wire, via: Via) -> None:
        self._via = via
        if self._modern:
            return  # no notifications go to servers of the newer era over HTTP
        async with self._relay.exchange(via.visit, via.screen, self._post(message)) as response:
            if response.status >= 400:
                raise ServerStatus(via.visit.rule.name, response.status, [])

    async def listen(self) -> None:
        """Read the session's own stream until it is cancelled, or the server has none."""
        if self._modern:
            return
        last: bytes | None = None
        failures = 0
        while failures < _RETRIES:
            if self._via is None or self._session is None:
                return
            headers = [(b"accept", EVENTS.encode()), *self._session_headers()]
            if last is not None:
                headers.append((b"last-event-id", last))
            with suppress(ServerFailed, ConnectionLost, ValueError, EventTooLarge):
                async with self._relay.exchange(
                    self._via.visit, self._via.screen, Upward("GET", headers, silence_s=None)
                ) as response:
                    if response.status != 200 or kind_of(response) != EVENTS:
                        return
                    splitter, breaths = EventSplitter(self._limits.event), Breaths()
                    async for chunk in response.chunks():
                        for raw in splitter.feed(chunk):
                            await breaths.breathe()
                            event = read_event(raw)
                            last = event.id or last
                            value = await aside(read_from_server, event.data) if event.data else None
                            if isinstance(value, dict):
                                # A stream that says something may end as often as its server likes.
                                failures = 0
                                self._unasked(value)
            failures += 1
            await asyncio.sleep(_AGAIN_S)

    async def close(self) -> None:
        if self._session is None or self._via is None:
            return
        with suppress(ServerFailed, TimeoutError, ConnectionLost):
            async with asyncio.timeout(2):
                up = Upward("DELETE", self._session_headers(), silence_s=2)
                async with self._relay.exchange(self._via.visit, self._via.screen, up):
                    pass

    async def _messages(self, response: Response, via: Via) -> AsyncGenerator[Wire, None]:
        if kind_of(response) == EVENTS and response.status == 200:
            splitter, breaths = EventSplitter(self._limits.event), Breaths()
            async for chunk in response.chunks():
                for raw in splitter.feed(chunk):
                    await breaths.breathe()
                    data = read_event(raw).data
                    if data:
                        yield await aside(_object, data)
            return
        body = await self._relay.read(response)
        if response.status >= 400 and not _is_error(body):
            raise ServerStatus(via.visit.rule.name, response.status, [])
        if body:
            yield await aside(_object, body)

    def _post(self, message: Wire, more: RawHeaders = ()) -> Upward:
        headers = [_JSON, _BOTH, *self._session_headers()]
        method = message.get("method")
        if self._modern and isinstance(method, str):
            params = message.get("params", {})
            headers += [(VERSION, MODERN_VERSIONS[-1].encode()), (METHOD, encoded(method).encode("latin-1"))]
            named = params.get(NAMED_BY.get(method, ""))
            if isinstance(named, str):
                headers.append((NAME, encoded(named).encode("latin-1")))
            headers += more
        return Upward("POST", headers, dump(message), self._limits.call_s)

    def _session_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [] if self._session is None else [(SESSION, self._session)]
        if not self._modern and self._version is not None:
            headers.append((VERSION, self._version))
        return headers

    async def _cancel(self, id_: Any, via: Via) -> None:
        params = {"requestId": id_, "reason": "the client has cancelled it"}
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        with suppress(ServerFailed, TimeoutError, ConnectionLost):
            async with asyncio.timeout(2):
                await asyncio.shield(self.tell(message, via))


def error_of(answer: Wire) -> RpcError | None:
    error = answer.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        return RpcError(-32603, "the server answered with an error that cannot be read")
    code, message = error.get("code"), error.get("message")
    return RpcError(code if isinstance(code, int) else -32603, str(message or "unknown error"), error.get("data"))


def _object(data: bytes) -> Wire:
    try:
        value = read_from_server(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerFailed("the server sent a message that cannot be read", reason="bad_answer")
    return value


def _is_error(body: bytes) -> bool:
    with suppress(ValueError):
        value = read_from_server(body)
        return isinstance(value, dict) and isinstance(value.get("error"), dict) and value.get("jsonrpc") == "2.0"
    return False


def _header(response: Response, name: bytes) -> bytes | None:
    return next((value for key, value in response.headers if key == name), None)
