"""Clients of the older era in front of a conversation: sessions, their streams, and the questions that go over them."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from galley_vault_proxy.mcp_door.answers import EVENT_HEADERS, Reply
from galley_vault_proxy.mcp_door.beside import beside
from galley_vault_proxy.mcp_door.conversation import OUR_NAME, Call, Caller, Conversation
from galley_vault_proxy.mcp_door.emitter import Emitter
from galley_vault_proxy.mcp_door.failure import RpcError, ServerFailed
from galley_vault_proxy.mcp_door.headers import RawHeaders, param_headers
from galley_vault_proxy.mcp_door.holding import Held
from galley_vault_proxy.mcp_door.http_link import error_of
from galley_vault_proxy.mcp_door.jsonrpc import Object, RequestId, RpcMessage, error_message, result_message
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Via, Wire
from galley_vault_proxy.mcp_door.modern_front import contained
from galley_vault_proxy.mcp_door.screen import Screen
from galley_vault_proxy.mcp_door.sse import event
from galley_vault_proxy.mcp_door.wire import HANDSHAKE_VERSIONS, INVALID_PARAMS, METHOD_NOT_FOUND

_OUTBOX: Final = 1024
_MOST_QUESTIONS: Final = 64
_MOST: Final = 1024
_IDLE_S: Final = 1800.0
_LISTS: Final = ("tools", "prompts", "resources")
_NEEDS: Final = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}


@dataclass(eq=False)
class LegacySession:
    """One client. `questions`: what it has been asked and has not answered; `running`: its calls, by its own ids."""

    id: str
    held: Held
    caller: Caller
    version: str
    last_used: float
    log_level: str | None = None
    outbox: "asyncio.Queue[Wire]" = field(default_factory=lambda: asyncio.Queue(_OUTBOX))
    questions: dict[RequestId, "asyncio.Future[dict[str, Any]]"] = field(default_factory=dict)
    running: dict[RequestId, "asyncio.Task[dict[str, Any] | Exception]"] = field(default_factory=dict)
    watched: set[str] = field(default_factory=set)
    listening: "asyncio.Task[dict[str, Any] | Exception] | None" = None
    asking: int = 0
    reader: asyncio.Event = field(default_factory=asyncio.Event)
    ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def asked(self) -> None:
        self.asking -= 1

    def put(self, message: Wire) -> None:
        """Something that belongs to no call. Without a reader only the newest are kept."""
        if self.outbox.full():
            self.outbox.get_nowait()
        self.outbox.put_nowait(message)


class LegacyFront:
    def __init__(
        self,
        tasks: Callable[[], asyncio.TaskGroup],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._limits = limits
        self._clock = clock
        self._sessions: dict[str, LegacySession] = {}

    def session(self, session_id: str | None) -> LegacySession | None:
        found = self._sessions.get(session_id) if session_id is not None else None
        if found is not None and found.held.gone:
            self._end(found)
            return None
        return found

    def begin(self, held: Held, caller: Caller, via: Via, version: str) -> LegacySession:
        self._make_room()
        conversation = held.ready.result()
        agreed = conversation.facts.version if conversation.facts.era == "legacy" else _agreed(version)
        session = LegacySession(f"galley-{secrets.token_urlsafe(24)}", held, caller, agreed, self._clock())
        self._sessions[session.id] = session
        held.users += 1
        held.listeners.add(lambda got: self._unasked(session, got, via))
        return session

    async def initialized(self, session: LegacySession, message: RpcMessage, emitter: Emitter) -> None:
        """Answer `initialize`."""
        facts = session.held.ready.result().facts
        if facts.era == "legacy":
            result = dict(facts.result)
        else:
            result = {
                "protocolVersion": session.version,
                "capabilities": dict(facts.capabilities),
                "serverInfo": dict(facts.info) or {"name": "unknown", "version": "0"},
                **({"instructions": facts.instructions} if facts.instructions is not None else {}),
            }
        await emitter.answer(result_message(message.id, result))

    async def post(self, session: LegacySession, via: Via, reply: Reply) -> None:
        session.last_used = self._clock()
        message = via.visit.message
        assert message is not None
        emitter = Emitter(reply, via.screen)
        if message.kind == "request":
            await self._request(session, message, via, emitter, reply)
            return
        if message.kind == "answer":
            self._answered(session, message)
        else:
            await self._notified(session, message, via)
        await emitter.accepted()

    async def get(self, session: LegacySession, screen: Screen, reply: Reply) -> None:
        """The stream of the session. A second reader takes it over from the first."""
        session.last_used = self._clock()
        session.reader.set()
        mine = session.reader = asyncio.Event()
        await reply.start(200, EVENT_HEADERS)

        async def replaced() -> None:
            await mine.wait()
            raise _Replaced

        session.held.users += 1
        try:
            with suppress(TimeoutError, _Replaced), reply.kept_alive(self._limits.keepalive_s):
                async with asyncio.timeout(self._limits.stream_s), beside(replaced):
                    while True:
                        await reply.body(event(await screen.value(await session.outbox.get())))
            await reply.end()
        finally:
            session.held.users -= 1

    async def delete(self, session: LegacySession, reply: Reply) -> None:
        self._end(session)
        await reply.whole(200, [], b"")

    async def _request(
        self, session: LegacySession, message: RpcMessage, via: Via, emitter: Emitter, reply: Reply
    ) -> None:
        id_ = message.id
        assert id_ is not None
        conversation = session.held.ready.result()
        modern = conversation.facts.era == "modern"
        if message.method == "ping":
            await emitter.answer(result_message(id_, {}))
        elif message.method == "initialize":
            await emitter.answer(error_message(id_, -32600, "this session has been initialized"))
        elif message.method == "logging/setLevel" and modern:
            session.log_level = str(message.params.get("level"))
            await emitter.answer(result_message(id_, {}))
        elif message.method in ("resources/subscribe", "resources/unsubscribe") and modern:
            uri = message.params.get("uri")
            if isinstance(uri, str):
                (session.watched.add if message.method.endswith("/subscribe") else session.watched.discard)(uri)
                self._listen(session, conversation, via)
            await emitter.answer(result_message(id_, {}))
        elif id_ in session.running:
            await emitter.answer(error_message(id_, -32600, "a request with this id is still running"))
        else:
            await self._call(session, conversation, message, via, emitter, reply)

    async def _call(
        self,
        session: LegacySession,
        conversation: Conversation,
        message: RpcMessage,
        via: Via,
        emitter: Emitter,
        reply: Reply,
    ) -> None:
        id_ = message.id
        assert id_ is not None
        task = self._start(session, conversation, message, via, emitter)
        session.running[id_] = task
        task.add_done_callback(lambda _: session.running.pop(id_, None))
        session.held.users += 1
        task.add_done_callback(lambda _: _one_less(session.held))
        with reply.kept_alive(self._limits.keepalive_s):
            # Of this era a client that hangs up has not cancelled anything: the call goes on without it.
            await asyncio.wait([task])
        if task.cancelled():
            await emitter.answer(error_message(id_, -32800, "the request was cancelled"))
            return
        result = task.result()
        if isinstance(result, RpcError):
            code = INVALID_PARAMS if result.code in (-32020, -32021) else result.code
            await emitter.answer(error_message(id_, code, result.message, result.data))
        elif isinstance(result, ServerFailed):
            if not emitter.begun:
                raise result
            await emitter.answer(error_message(id_, -32603, result.message))
        elif isinstance(result, dict):
            await emitter.answer(
                result_message(id_, _as_legacy(result) if conversation.facts.era == "modern" else result)
            )

    def _start(
        self,
        session: LegacySession,
        conversation: Conversation,
        message: RpcMessage,
        via: Via,
        emitter: Emitter,
    ) -> "asyncio.Task[dict[str, Any] | Exception]":
        caller = Caller(session.caller.info, session.caller.capabilities, session.log_level)
        headers: RawHeaders = ()
        known = via.screen.catalogue.known(str(message.params.get("name")))
        if message.method == "tools/call" and known is not None:
            headers = param_headers(known.schema, message.params.get("arguments") or {})

        async def notice(got: Wire) -> None:
            await emitter.message(got)

        async def question(method: str, params: Object) -> dict[str, Any]:
            return await self._ask(session, caller, method, params, emitter.message)

        call = Call(message.method, message.params, caller, via, headers)
        return self._tasks().create_task(
            contained(conversation.call(call, notice, question), self._limits.call_s), name="mcp-call"
        )

    async def _ask(
        self, session: LegacySession, caller: Caller, method: str, params: Object, send: Callable[[Wire], Any]
    ) -> dict[str, Any]:
        needed = _NEEDS.get(method)
        if needed is None or needed not in caller.capabilities:
            raise RpcError(METHOD_NOT_FOUND, f"the client does not take {method}")
        id_ = f"galley-{next(session.ids)}"
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        session.questions[id_] = future
        try:
            await send({"jsonrpc": "2.0", "id": id_, "method": method, "params": dict(params)})
            return await future
        finally:
            session.questions.pop(id_, None)

    def _answered(self, session: LegacySession, message: RpcMessage) -> None:
        future = session.questions.get(message.id) if message.id is not None else None
        if future is None or future.done():
            return
        error = error_of(dict(message.value))
        if error is not None:
            future.set_exception(error)
        else:
            result = message.value.get("result")
            future.set_result(result if isinstance(result, dict) else {})

    async def _notified(self, session: LegacySession, message: RpcMessage, via: Via) -> None:
        conversation = session.held.ready.result()
        if message.method == "notifications/cancelled":
            task = session.running.get(message.params.get("requestId", ""))
            if task is not None:
                task.cancel()
        elif message.method == "notifications/initialized":
            # A server of the older era has been told when the conversation began.
            if conversation.facts.era == "modern":
                self._listen(session, conversation, via)
        elif conversation.facts.era == "legacy":
            await conversation.notify(message.method, message.params, via)

    def _listen(self, session: LegacySession, conversation: Conversation, via: Via) -> None:
        """What the older era has as a session's stream, and the newer as a subscription."""
        if session.listening is not None:
            session.listening.cancel()
        capabilities = conversation.facts.capabilities
        wanted: dict[str, Any] = {f"{name}ListChanged": True for name in _LISTS if name in capabilities}
        if session.watched:
            wanted["resourceSubscriptions"] = sorted(session.watched)
        if not wanted:
            return

        async def notice(got: Wire) -> None:
            if got.get("method") != "notifications/subscriptions/acknowledged":
                session.put(got)

        call = Call("subscriptions/listen", {"notifications": wanted}, session.caller, via)
        session.listening = self._tasks().create_task(
            contained(conversation.call(call, notice, None), self._limits.stream_s), name="mcp-listen"
        )

    def _unasked(self, session: LegacySession, got: Wire, via: Via) -> None:
        if "id" not in got:
            session.put(got)
            return
        if session.asking >= _MOST_QUESTIONS:
            return  # whoever asks that much does not wait for an answer
        session.asking += 1

        async def ask() -> dict[str, Any]:
            async def send(message: Wire) -> None:
                session.put(message)

            params = got.get("params")
            result: dict[str, Any] = {}
            try:
                if got["method"] != "ping":
                    params = params if isinstance(params, dict) else {}
                    result = await self._ask(session, session.caller, str(got["method"]), params, send)
                answer: Wire = {"jsonrpc": "2.0", "id": got["id"], "result": result}
            except RpcError as error:
                answer = error_message(got["id"], error.code, error.message, error.data)
            await session.held.ready.result().answer(answer, via)
            return {}

        task = self._tasks().create_task(contained(ask(), self._limits.call_s), name="mcp-question")
        task.add_done_callback(lambda _: session.asked())

    def _end(self, session: LegacySession) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        for task in [*session.running.values(), *([session.listening] if session.listening else [])]:
            task.cancel()
        session.reader.set()
        session.held.users -= 1
        session.held.stop.set()

    def _make_room(self) -> None:
        now = self._clock()
        for session in [one for one in self._sessions.values() if now - one.last_used > _IDLE_S or one.held.gone]:
            self._end(session)
        if len(self._sessions) >= _MOST:
            self._end(min(self._sessions.values(), key=lambda one: one.last_used))


class _Replaced(Exception):
    """Another reader has come."""


def caller_of(message: RpcMessage) -> Caller:
    info, able = message.params.get("clientInfo"), message.params.get("capabilities")
    return Caller(info if isinstance(info, dict) else OUR_NAME, able if isinstance(able, dict) else {})


def _agreed(version: str) -> str:
    return version if version in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]


def _as_legacy(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("resultType", "ttlMs", "cacheScope")}


def _one_less(held: Held) -> None:
    held.users -= 1
