"""Streamable HTTP to streamable HTTP in one era: what no rule changes passes byte for byte."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from galley_vault_proxy.credentials.port import Injection
from galley_vault_proxy.mcp_door.answers import EVENT_HEADERS, Reply
from galley_vault_proxy.mcp_door.catalogue import MAX_TOOLS
from galley_vault_proxy.mcp_door.failure import ServerFailed, ServerStatus
from galley_vault_proxy.mcp_door.fairness import Breaths, aside
from galley_vault_proxy.mcp_door.headers import downward, upward
from galley_vault_proxy.mcp_door.jsonrpc import dump, error_message, read_from_server
from galley_vault_proxy.mcp_door.keys import Keys
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.pools import Pools
from galley_vault_proxy.mcp_door.screen import BadServer, Screen
from galley_vault_proxy.mcp_door.sse import EventSplitter, EventTooLarge, event, read_event
from galley_vault_proxy.mcp_door.upstream import ConnectionLost, Response
from galley_vault_proxy.mcp_door.visit import SessionSeal, Visit
from galley_vault_proxy.mcp_door.wire import (
    INTERNAL_ERROR,
    META_CAPABILITIES,
    META_CLIENT,
    META_VERSION,
    METHOD,
    SESSION,
    VERSION,
)

EVENTS: Final = "text/event-stream"
_LIST_ID: Final = "galley-tools-list"
_PAGES: Final = 64
_SHAPES: Final = ("application/json", EVENTS)


@dataclass(frozen=True, slots=True)
class Upward:
    """One HTTP request to a server."""

    verb: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = b""
    silence_s: float | None = None


class Relay:
    def __init__(self, pools: Pools, keys: Keys, seal: SessionSeal, limits: Limits) -> None:
        self._pools = pools
        self._keys = keys
        self._seal = seal
        self._limits = limits

    async def post(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        """Forward one message. Raises ServerFailed before anything was answered, never after."""
        await self.try_post(visit, screen, reply, ())

    async def try_post(self, visit: Visit, screen: Screen, reply: Reply, refusals: Collection[int]) -> int | None:
        """Forward one message, unless the server refuses it with one of these statuses, which is returned then."""
        async with self.exchange(visit, screen, self._upward(visit, self._limits.call_s)) as response:
            if response.status in refusals:
                return response.status
            if kind_of(response) == EVENTS and response.status == 200:
                await self._stream(response, visit, screen, reply, self._limits.call_s)
            else:
                await self._whole(response, visit, screen, reply)
        return None

    async def get(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        """The stream of a session, from the beginning or from an event on."""
        async with self.exchange(visit, screen, self._upward(visit, None)) as response:
            if kind_of(response) == EVENTS and response.status == 200:
                await self._stream(response, visit, screen, reply, self._limits.stream_s)
            else:
                await self._whole(response, visit, screen, reply)

    async def delete(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        async with self.exchange(visit, screen, self._upward(visit, self._limits.list_s)) as response:
            await self._whole(response, visit, screen, reply)

    async def list_tools(self, visit: Visit, screen: Screen) -> list[Mapping[str, Any]]:
        """Ask for the tools as the client itself would, in its session. Raises ServerFailed."""
        found: list[Mapping[str, Any]] = []
        cursor: str | None = None
        left = self._limits.answer
        try:
            async with asyncio.timeout(self._limits.list_s):
                for _ in range(_PAGES):
                    result, size = await self._ask(visit, screen, _listing(visit, cursor))
                    left -= size
                    if left < 0:
                        raise ServerFailed("the server's list of tools is too large", reason="list_too_large")
                    tools, cursor = result.get("tools"), result.get("nextCursor")
                    found += [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
                    if not isinstance(cursor, str) or len(found) > MAX_TOOLS:
                        return found
        except TimeoutError:
            raise ServerFailed("the server does not list its tools in time", reason="list_timeout") from None
        raise ServerFailed("the server's list of tools does not end", reason="list_endless")

    @asynccontextmanager
    async def exchange(self, visit: Visit, screen: Screen, up: Upward) -> AsyncIterator[Response]:
        """Send it with the credential, with a newer one if that is refused. Raises ServerFailed.

        A refusal is never passed on: the client would go and ask its user for a token that is none of its business.
        """
        # Not the visit's: it may have been renewed a moment ago, to list the tools.
        injection = screen.injection
        async with self._sent(visit, up, injection) as response:
            if not _unauthorized(response):
                _passable(response)
                yield response
                return
        newer = None if injection is None else await self._keys.renew(visit.grant, visit.rule.url, injection)
        if newer is None:
            raise _refused(visit, injection)
        screen.patterns = self._keys.patterns(newer)
        screen.injection = newer
        async with self._sent(visit, up, newer) as response:
            if _unauthorized(response):
                raise _refused(visit, newer)
            _passable(response)
            yield response

    def _sent(self, visit: Visit, up: Upward, injection: Injection | None) -> AbstractAsyncContextManager[Response]:
        url = visit.rule.url
        credential = ("", 0) if injection is None else (injection.credential_id, injection.version)
        headers = [(b"accept-encoding", b"identity"), *up.headers]
        if injection is not None:
            name = injection.header.lower().encode("latin-1")
            headers = [(key, value) for key, value in headers if key != name]
            headers.append((name, injection.value.reveal().encode("utf-8")))
        body = up.body if up.verb == "POST" else None
        return self._pools.asked((visit.principal, url, *credential), up.verb, headers, body, up.silence_s)

    def _upward(self, visit: Visit, silence_s: float | None) -> Upward:
        headers = [(name, value) for name, value in upward(visit.headers) if name != SESSION]
        if visit.session_id is not None:
            headers.append((SESSION, visit.session_id.encode("latin-1")))
        return Upward(visit.verb, headers, visit.body, silence_s)

    def _downward(self, response: Response, visit: Visit, screen: Screen) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = []
        for name, value in downward(response.headers):
            if name == SESSION:
                given = value.decode("latin-1")
                # Most servers repeat it in every answer, and then the client has its proof.
                sealed = visit.given[SESSION] if given == visit.session_id else self._sealed(given, visit)
                value = sealed.encode("latin-1")
            headers.append((name, value))
        whole = b"\n".join(value for _, value in headers)
        if screen.text(whole) is not whole:
            raise ServerFailed("the server answered with its credential in a header", reason="secret_in_header")
        return headers

    def _sealed(self, session_id: str, visit: Visit) -> str:
        return self._seal.seal(session_id, visit.principal, visit.rule.url)

    async def _whole(self, response: Response, visit: Visit, screen: Screen, reply: Reply) -> None:
        body = await self.read(response)
        headers = self._downward(response, visit, screen)
        status = response.status
        if not body:
            await reply.whole(status, [(name, value) for name, value in headers if name != b"content-type"], b"")
            return
        if kind_of(response) != "application/json":
            raise _odd(visit, status) if status < 400 else ServerStatus(visit.rule.name, status, headers)
        try:
            if status >= 400 and not _is_message(await aside(read_from_server, body)):
                raise ServerStatus(visit.rule.name, status, headers)
            clean = await screen.message(body)
        except (BadServer, ValueError) as error:
            if status >= 400:
                raise ServerStatus(visit.rule.name, status, headers) from None
            raise ServerFailed(f"{visit.rule.name}: {error}", reason="bad_answer") from None
        await reply.whole(status, headers, clean)

    async def _stream(self, response: Response, visit: Visit, screen: Screen, reply: Reply, most_s: float) -> None:
        headers = [item for item in self._downward(response, visit, screen) if item[0] not in _OWN]
        # At once, however long the first event takes: the client is being served.
        await reply.start(200, [*headers, *EVENT_HEADERS])
        resumable = False
        trouble: str | None = None
        breaths = Breaths()
        with reply.kept_alive(self._limits.keepalive_s):
            try:
                async with asyncio.timeout(most_s):
                    splitter = EventSplitter(self._limits.event)
                    async for chunk in response.chunks():
                        events = splitter.feed(chunk)
                        if events:
                            resumable = resumable or any(read_event(raw).id for raw in events)
                            clean = []
                            for raw in events:
                                clean.append(await screen.event(raw))
                                await breaths.breathe()
                            await reply.body(b"".join(clean), more=not response.ended)
            except (BadServer, EventTooLarge) as error:
                trouble = str(error)
            except ConnectionLost:
                trouble = None if resumable else "the connection to the server was lost"
            except TimeoutError:
                trouble = f"it took longer than {most_s:.0f} s"
            await self._finish(visit, screen, reply, trouble)

    async def _finish(self, visit: Visit, screen: Screen, reply: Reply, trouble: str | None) -> None:
        """End a stream; if the request is still unanswered because of some trouble, the answer says so."""
        asked = visit.message
        if trouble is not None and not screen.answered and asked is not None and asked.kind == "request":
            failed = error_message(asked.id, INTERNAL_ERROR, f"{visit.rule.name}: {trouble}")
            await reply.body(event(dump(failed)))
        await reply.end()

    async def read(self, response: Response) -> bytes:
        """The whole body, bounded in size and time. Raises ServerFailed."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.call_s):
                async for chunk in response.chunks():
                    body += chunk
                    if len(body) > self._limits.answer:
                        raise ServerFailed(
                            f"the server's answer is larger than {self._limits.answer >> 20} MiB",
                            reason="answer_too_large",
                        )
        except ConnectionLost:
            raise ServerFailed("the connection to the server was lost", reason="connection_lost") from None
        except TimeoutError:
            raise ServerFailed("the server's answer did not end in time", reason="answer_timeout") from None
        return bytes(body)

    async def _ask(self, visit: Visit, screen: Screen, up: Upward) -> tuple[Mapping[str, Any], int]:
        """The result, and how large the answer was."""
        found: Any = None
        size = 0
        async with self.exchange(visit, screen, replace(up, silence_s=self._limits.list_s)) as response:
            status = response.status
            if kind_of(response) == EVENTS:
                found, size = await self._first_answer(response)
            else:
                body = await self.read(response)
                size = len(body)
                with suppress(ValueError):
                    found = await aside(read_from_server, body)
        if isinstance(found, dict) and isinstance(found.get("result"), dict):
            return found["result"], size
        if status >= 400:
            # A session that has ended, above all: the client must learn of it as if it had asked itself.
            raise ServerStatus(visit.rule.name, status, [])
        if isinstance(found, dict) and "error" in found:
            return {}, size  # a server without tools
        raise ServerFailed("the server does not list its tools", reason="list_refused")

    async def _first_answer(self, response: Response) -> tuple[Any, int]:
        splitter, breaths = EventSplitter(self._limits.event), Breaths()
        try:
            async for chunk in response.chunks():
                for raw in splitter.feed(chunk):
                    await breaths.breathe()
                    data = read_event(raw).data
                    value = await aside(read_from_server, data) if data else None
                    if isinstance(value, dict) and value.get("id") == _LIST_ID:
                        return value, len(raw)
        except (ConnectionLost, ValueError, EventTooLarge):
            pass
        return None, 0


_OWN: Final = frozenset({b"content-type", b"cache-control"})


def _listing(visit: Visit, cursor: str | None) -> Upward:
    params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
    headers = [
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
    ]
    if VERSION in visit.given:
        headers.append((VERSION, visit.given[VERSION].encode("latin-1")))
    if visit.era == "modern":
        meta = visit.message.meta if visit.message is not None else {}
        params["_meta"] = {key: meta[key] for key in (META_VERSION, META_CAPABILITIES, META_CLIENT) if key in meta}
        headers.append((METHOD, b"tools/list"))
    if visit.session_id is not None:
        headers.append((SESSION, visit.session_id.encode("latin-1")))
    message = {"jsonrpc": "2.0", "id": _LIST_ID, "method": "tools/list", "params": params}
    return Upward("POST", headers, dump(message))


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and value.get("jsonrpc") == "2.0"


def kind_of(response: Response) -> str:
    return response.header(b"content-type").partition(";")[0].strip().lower()


def _unauthorized(response: Response) -> bool:
    return response.status == 401 or (response.status == 403 and response.has(b"www-authenticate"))


def _passable(response: Response) -> None:
    """Raises ServerFailed for what cannot be read, and so not be checked either."""
    if 300 <= response.status < 400:
        raise ServerFailed("the server redirects to another address, which is not followed", reason="redirect")
    codings = {value.strip().lower() for name, value in response.headers if name == b"content-encoding"}
    if codings - {b"", b"identity"}:
        raise ServerFailed("the server compresses its answer although it was asked not to", reason="compressed")


def _refused(visit: Visit, injection: Injection | None) -> ServerFailed:
    name = visit.rule.name
    if injection is None:
        text = f"{name} asks for a credential, and no vault of this session has one for {visit.rule.url}"
    else:
        text = f"{name} refuses its credential ({injection.credential_id}): renew it in its vault"
    return ServerFailed(text, reason="upstream_unauthorized", type_="mcp_authentication_failed_error")


def _odd(visit: Visit, status: int) -> ServerFailed:
    return ServerFailed(
        f"{visit.rule.name} answered with something that is not MCP (HTTP status {status})", reason="bad_answer"
    )
