"""The MCP door: `/mcp/{server}`, an ASGI app with a gate of its own.

    async with McpDoor.open(...) as door:
        app = build_http(faces, key=key, doors=door.routes())

Who holds a grant talks to the servers that it names as if to the server itself, and never sees their credentials.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Self

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from galley_vault_proxy.audit import Audit
from galley_vault_proxy.config import Protocol, StdioServer
from galley_vault_proxy.credentials.port import CredentialSource
from galley_vault_proxy.errors import GrantRefused, ProxyError, RateLimited, RequestError
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.connection import TUNNEL
from galley_vault_proxy.mcp_door import gate
from galley_vault_proxy.mcp_door.answers import Answer, Reply, SlowReader, refusal, upstream_error
from galley_vault_proxy.mcp_door.bridge import Bridge
from galley_vault_proxy.mcp_door.catalogue import Catalogue
from galley_vault_proxy.mcp_door.failure import ServerFailed, ServerStatus
from galley_vault_proxy.mcp_door.headers import RawHeaders, check_routing, single
from galley_vault_proxy.mcp_door.jsonrpc import Refusal, RpcMessage, dump, read_message
from galley_vault_proxy.mcp_door.judge import judge
from galley_vault_proxy.mcp_door.keys import Keys
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.pins import PinPlace, PinStore
from galley_vault_proxy.mcp_door.pools import Pools
from galley_vault_proxy.mcp_door.rate import Rates
from galley_vault_proxy.mcp_door.relay import Relay
from galley_vault_proxy.mcp_door.screen import Screen
from galley_vault_proxy.mcp_door.trace import Trace
from galley_vault_proxy.mcp_door.visit import Principal, SessionSeal, Visit
from galley_vault_proxy.mcp_door.wire import INTERNAL_ERROR, SERVER_BUSY, SESSION, VERSION, era_of
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.policy import Deny, ServerAccess, decide
from galley_vault_proxy.telemetry import span

_EVENT_ID: Final = b"galley-event-id"
# What a client tells of itself (its session, its sandbox) that is no server's business.
_OF_THE_CLIENT: Final = frozenset({"x-codex-turn-metadata"})
_CATALOGUES: Final = 4096
_LOOK_S: Final = 0.02

logger = logging.getLogger(__name__)


class McpDoor:
    """Made by `open`. `routes` gives what the HTTP side mounts."""

    def __init__(
        self,
        registry: Registry,
        audit: Audit,
        pins: PinStore,
        bridge: Bridge,
        keys: Keys,
        seal: SessionSeal,
        tasks: asyncio.TaskGroup,
        *,
        hosts: frozenset[str] | None,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._keys = keys
        self._audit = audit
        self._pins = pins
        self._hosts = hosts
        self._limits = limits
        self._clock = clock
        self._seal = seal
        self._tasks = tasks
        self._bridge = bridge
        self._rates = Rates(limits.per_second, limits.burst, limits.at_once, clock)
        self._catalogues: dict[tuple[Principal, PinPlace], Catalogue] = {}
        self._streams: set[asyncio.Timeout] = set()
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        registry: Registry,
        credentials: CredentialSource,
        audit: Audit,
        netguard: Netguard,
        pins: PinStore,
        key: bytes,
        closing: asyncio.Event,
        hosts: frozenset[str] | None = None,
        stdio: Mapping[str, StdioServer] | None = None,
        protocols: Mapping[str, Protocol] | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> AsyncIterator[Self]:
        """`key`: any secret that lasts; session ids are bound with it. `closing`: ends every stream when it is set.

        `hosts`: the names that the proxy may be called by (`gate.known_hosts`). `stdio`: the servers that it runs
        itself. `protocols`: for URLs whose era is not to be found out.
        """
        bounds = limits or Limits()
        pools = Pools(netguard, bounds, clock=clock)
        keys, seal = Keys(credentials), SessionSeal(key)
        relay = Relay(pools, keys, seal, bounds)
        try:
            async with (
                asyncio.TaskGroup() as tasks,
                Bridge.open(
                    registry, relay, seal, bounds, stdio=stdio or {}, protocols=protocols or {}, clock=clock
                ) as bridge,
            ):
                door = cls(registry, audit, pins, bridge, keys, seal, tasks, hosts=hosts, limits=bounds, clock=clock)
                waiting = tasks.create_task(door._end_streams(closing), name="mcp-door-closing")
                try:
                    yield door
                finally:
                    waiting.cancel()
        finally:
            pools.close()

    def routes(self) -> list[BaseRoute]:
        """Both spellings are served where they are: not every client follows a redirect."""
        return [Route("/mcp/{server}", endpoint=self), Route("/mcp/{server}/", endpoint=self)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # RFC 9110, 5.5: blanks around a value are no part of it; not every HTTP parser takes them off.
        headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        trace = Trace(str(scope["path_params"]["server"]), self._clock())
        try:
            given = single(headers)
        except Refusal as refused:
            await Reply(send, self._tasks, patience_s=self._limits.send_s).answer(
                refusal(400, refused.message, code=refused.code)
            )
            return
        reply = Reply(send, self._tasks, patience_s=self._limits.send_s, extra=gate.cross_origin(given))
        with span("mcp_door", {"server": trace.server, "verb": scope["method"]}):
            try:
                answer = await self._guarded(scope, headers, given, receive, reply, trace)
                if answer is not None:
                    await reply.answer(answer)
            except SlowReader:
                trace.reason = "slow_reader"
            finally:
                self._record(trace, reply)

    async def _guarded(
        self,
        scope: Scope,
        headers: RawHeaders,
        given: dict[bytes, str],
        receive: Receive,
        reply: Reply,
        trace: Trace,
    ) -> Answer | None:
        """Serve it, and turn every error into an answer if none has begun."""
        try:
            return await self._serve(scope, headers, given, receive, reply, trace)
        except GrantRefused as error:
            trace.deny(f"grant_{error.reason}")
            answer = refusal(401, error.message, headers=[gate.CHALLENGE])
        except RateLimited as error:
            trace.deny("rate_limited")
            retry = (b"retry-after", str(error.retry_after).encode())
            answer = refusal(429, error.message, code=SERVER_BUSY, headers=[retry])
        except RequestError as error:
            trace.deny(error.error_code or "unavailable")
            # 401 would send the client looking for a token of its own.
            answer = refusal(error.status, error.message, code=INTERNAL_ERROR)
        except Exception:
            logger.exception("the MCP door failed")
            trace.deny("internal_error")
            answer = refusal(500, "the vault proxy failed; its log says why", code=INTERNAL_ERROR)
        if reply.status is not None:
            await reply.end()
            return None
        return answer

    async def _serve(
        self,
        scope: Scope,
        headers: RawHeaders,
        given: dict[bytes, str],
        receive: Receive,
        reply: Reply,
        trace: Trace,
    ) -> Answer | None:
        wrong = gate.check_names(self._hosts, given)
        if wrong is not None:
            trace.deny("wrong_host")
            return wrong
        verb = scope["method"]
        if verb == "OPTIONS":
            return gate.preflight(given)
        grant = await self._registry.lookup(gate.bearer(given), scope.get("state", {}).get(TUNNEL))
        trace.grant, trace.event_id = grant, _event_id(headers)
        await self._audit.ready()
        if self._closing:
            trace.deny("closing")
            return refusal(
                503, "the vault proxy is shutting down", code=INTERNAL_ERROR, headers=[(b"retry-after", b"1")]
            )
        decision = decide(grant, ServerAccess(trace.server))
        rule = grant.server(trace.server)
        if isinstance(decision, Deny) or rule is None:
            trace.deny("server_not_granted")
            return refusal(404, f"there is no MCP server {trace.server} here")
        if verb not in ("POST", "GET", "DELETE"):
            trace.deny("method")
            return refusal(405, f"{verb} is not served here", headers=[(b"allow", gate.METHODS.encode())])
        with self._rates.take(grant.id):
            async with self._registry.hold(grant):
                visit = Visit(grant, rule, verb, headers, given, era_of(given.get(VERSION)))
                return await self._visit(visit, receive, reply, trace)

    async def _visit(self, visit: Visit, receive: Receive, reply: Reply, trace: Trace) -> Answer | None:
        trace.action = "mcp.request"
        message: RpcMessage | None = None
        try:
            if visit.verb == "POST":
                visit = await self._with_body(visit, receive)
                message = visit.message
            visit = self._with_session(visit)
            if message is not None:
                trace.event_id = trace.event_id or _tool_use_id(message)
                check_routing(visit.given, message, visit.era)
        except ClientGone:
            trace.reason = "client_gone"
            return None
        except Refusal as refused:
            trace.deny(
                _WORDS.get(refused.status, "bad_message") if isinstance(refused, _HttpRefusal) else "bad_message"
            )
            status = refused.status if isinstance(refused, _HttpRefusal) else 400
            return refusal(status, refused.message, code=refused.code, id_=refused.id)
        answer: Answer | None = None
        # The scope ends early when the client is gone, or the proxy is to end: then there is nothing to say.
        scope = asyncio.timeout(None)
        try:
            async with scope:
                with self._while_there(receive, reply, scope, trace):
                    answer = await self._judged(visit, reply, trace, scope)
        except TimeoutError:
            if not scope.expired():
                raise
        return answer

    @contextmanager
    def _while_there(self, receive: Receive, reply: Reply, scope: asyncio.Timeout, trace: Trace) -> Iterator[None]:
        """End the scope when the client hangs up. Most calls are over before it is worth a look."""
        watching: list[asyncio.Task[None]] = []

        def watch() -> None:
            watching.append(self._tasks.create_task(_until_gone(receive, reply, scope, trace), name="mcp-client"))

        timer = asyncio.get_running_loop().call_later(_LOOK_S, watch)
        try:
            yield
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()

    async def _judged(self, visit: Visit, reply: Reply, trace: Trace, scope: asyncio.Timeout) -> Answer | None:
        id_ = visit.message.id if visit.message is not None else None
        try:
            injection = await self._keys.get(visit.grant, visit.rule.url)
            visit = visit.with_injection(injection)
            screen = Screen(
                visit.grant,
                visit.rule.name,
                self._catalogue(visit),
                self._keys.patterns(injection),
                injection,
            )
            trace.screen = screen

            async def listed() -> Sequence[Mapping[str, Any]]:
                return await screen.tools(await self._bridge.list_tools(visit, screen))

            denied = await judge(visit, screen, listed, trace)
            if denied is not None:
                return denied
            with self._as_stream(visit, scope, trace):
                await self._forward(visit, screen, reply)
        except ServerStatus as failed:
            trace.reason = failed.reason
            return refusal(failed.status, failed.message, code=INTERNAL_ERROR, id_=id_, headers=failed.headers)
        except ServerFailed as failed:
            trace.reason = failed.reason
            return upstream_error(
                id_, failed.message, type_=failed.type, server=visit.rule.name, nothing_done=failed.nothing_done
            )
        except GrantRefused:
            raise
        except RequestError as error:
            trace.deny(error.error_code or "unavailable")
            status = error.status if error.status != 401 else 502
            return refusal(status, error.message, code=INTERNAL_ERROR, id_=id_)
        return None

    async def _forward(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        match visit.verb:
            case "POST":
                await self._bridge.post(visit, screen, reply)
            case "GET":
                await self._bridge.get(visit, screen, reply)
            case _:
                await self._bridge.delete(visit, screen, reply)

    @contextmanager
    def _as_stream(self, visit: Visit, scope: asyncio.Timeout, trace: Trace) -> Iterator[None]:
        """A stream that may last for hours: the audit tells of its beginning too, and a shutdown ends it at once."""
        lasting = visit.verb == "GET" or (visit.message is not None and visit.message.method == "subscriptions/listen")
        if not lasting:
            yield
            return
        self._audit.record(trace.line(size=None, now=self._clock()))
        self._streams.add(scope)
        try:
            yield
        finally:
            self._streams.discard(scope)

    async def _end_streams(self, closing: asyncio.Event) -> None:
        await closing.wait()
        self._closing = True
        for scope in self._streams:
            _end(scope)

    async def _with_body(self, visit: Visit, receive: Receive) -> Visit:
        kind = visit.given.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _HttpRefusal(415, "Content-Type must be application/json")
        body = await _body(receive, self._limits)
        message = read_message(body)
        private = _OF_THE_CLIENT.intersection(message.meta)
        if private:
            meta = {key: value for key, value in message.meta.items() if key not in private}
            body = dump({**message.value, "params": {**message.params, "_meta": meta}})
            message = read_message(body)
        return visit.with_message(body, message)

    def _with_session(self, visit: Visit) -> Visit:
        sealed = visit.given.get(SESSION)
        if sealed is None:
            return visit
        found = self._seal.open(sealed, visit.principal, visit.rule.url)
        if found is None:
            # As the server itself says of a session that it does not know: the client begins a new one.
            id_ = visit.message.id if visit.message is not None else None
            raise _HttpRefusal(404, "there is no such MCP session: send initialize first", id_)
        return visit.with_session(found)

    def _catalogue(self, visit: Visit) -> Catalogue:
        credential = visit.injection.credential_id if visit.injection is not None else ""
        place = PinPlace(visit.rule.url, credential)
        key = (visit.principal, place)
        found = self._catalogues.get(key)
        if found is None:
            if len(self._catalogues) >= _CATALOGUES:
                oldest = min(self._catalogues, key=lambda known: self._catalogues[known].last_used)
                del self._catalogues[oldest]
            found = Catalogue(place, self._pins, clock=self._clock, others=lambda: self._others(key))
            self._catalogues[key] = found
        found.last_used = self._clock()
        return found

    def _others(self, key: tuple[Principal, PinPlace]) -> Collection[str]:
        """Names of the tools of other servers that the same principal has seen."""
        return {
            name
            for known, catalogue in self._catalogues.items()
            if known[0] == key[0] and known[1].url != key[1].url
            for name in catalogue.names
        }

    def _record(self, trace: Trace, reply: Reply) -> None:
        try:
            for news in trace.screen.news if trace.screen is not None else ():
                self._audit.record(trace.pin_line(news))
            self._audit.record(trace.line(size=reply.bytes, now=self._clock()))
        except ProxyError as error:
            # It could be written when the request began; from now on nothing is let through.
            logger.error("a use of the MCP door is not in the audit: %s", error)


class ClientGone(Exception):
    """The client hung up before its request was whole."""


class _HttpRefusal(Refusal):
    """A refusal that has an HTTP status of its own."""

    def __init__(self, status: int, message: str, id_: str | int | None = None) -> None:
        super().__init__(-32600, message, id_)
        self.status = status


_WORDS: Final = {404: "session_unknown", 408: "slow_body", 413: "body_too_large", 415: "content_type"}


async def _body(receive: Receive, limits: Limits) -> bytes:
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message.get("body", b""))
                # A client that is still sending when the answer comes may never see it: it is heard out for a while.
                if size <= limits.body:
                    body += message.get("body", b"")
                elif size > 2 * limits.body:
                    break
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise _HttpRefusal(408, f"the request's body did not arrive within {limits.body_s:.0f} s") from None
    if size > limits.body:
        raise _HttpRefusal(413, f"the message is larger than {limits.body >> 20} MiB")
    return bytes(body)


async def _until_gone(receive: Receive, reply: Reply, scope: asyncio.Timeout, trace: Trace) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:
        logger.exception("a client cannot be watched, so its request ends")
    # Servers say so too when the answer is complete.
    if not reply.ended:
        trace.reason = "client_gone"
        _end(scope)


def _end(scope: asyncio.Timeout) -> None:
    if not scope.expired():
        scope.reschedule(0)


def _event_id(headers: RawHeaders) -> str | None:
    for name, value in headers:
        if name == _EVENT_ID:
            return value.decode("latin-1")
    return None


def _tool_use_id(message: RpcMessage) -> str | None:
    found = message.meta.get("claudecode/toolUseId")
    return found if isinstance(found, str) else None
