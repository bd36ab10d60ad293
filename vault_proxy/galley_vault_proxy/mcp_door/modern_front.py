"""Clients of the newer era in front of a conversation: each request by itself, and what a server asks is answered back.

A server of the older era sends its questions while a call runs. The client gets them as what the call still needs, the
call waits, and goes on when the client calls again with the answers.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from galley_vault_proxy.mcp_door.answers import Reply, rpc_error
from galley_vault_proxy.mcp_door.conversation import OUR_NAME, Call, Caller, Conversation
from galley_vault_proxy.mcp_door.emitter import Emitter
from galley_vault_proxy.mcp_door.failure import RpcError, ServerFailed
from galley_vault_proxy.mcp_door.headers import RawHeaders, check_params, param_headers
from galley_vault_proxy.mcp_door.holding import Held
from galley_vault_proxy.mcp_door.jsonrpc import (
    Object,
    Refusal,
    RpcMessage,
    canonical_key,
    error_message,
    result_message,
)
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Via, Wire
from galley_vault_proxy.mcp_door.visit import Principal
from galley_vault_proxy.mcp_door.wire import (
    INVALID_PARAMS,
    META_CAPABILITIES,
    META_CLIENT,
    META_LOG_LEVEL,
    META_SERVER,
    META_SUBSCRIPTION,
    META_VERSION,
    METHOD_NOT_FOUND,
    MODERN_VERSIONS,
    NAMED_BY,
    UNSUPPORTED_VERSION,
)

_CACHEABLE: Final = frozenset(
    {"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read", "server/discover"}
)
_GONE: Final = frozenset(
    {"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "roots/list"}
)
_KINDS: Final = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}
_NEEDS: Final = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
_PATIENCE_S: Final = 600.0
_MOST_WAITING: Final = 1024

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Waiting:
    """A call under way. `asked`: what its server wants to know, and where the answers go."""

    whose: Principal
    what: str
    task: "asyncio.Task[dict[str, Any] | Exception] | None" = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    asked: dict[str, tuple[Wire, "asyncio.Future[dict[str, Any]]"]] = field(default_factory=dict)
    emitter: Emitter | None = None
    until: asyncio.TimerHandle | None = None


class ModernFront:
    def __init__(self, tasks: Callable[[], asyncio.TaskGroup], limits: Limits) -> None:
        self._tasks = tasks
        self._limits = limits
        self._waiting: dict[str, Waiting] = {}

    def caller(self, message: RpcMessage) -> Caller:
        info, able = message.meta.get(META_CLIENT), message.meta.get(META_CAPABILITIES)
        level = message.meta.get(META_LOG_LEVEL)
        return Caller(
            info if isinstance(info, dict) else OUR_NAME,
            able if isinstance(able, dict) else {},
            level if isinstance(level, str) else None,
        )

    def wrong(self, message: RpcMessage) -> dict[str, Any] | None:
        """What is wrong with the envelope, as an error of the protocol. The order is that of the protocol."""
        missing = [key for key in (META_VERSION, META_CAPABILITIES) if key not in message.meta]
        if missing:
            return error_message(message.id, INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}")
        version = message.meta[META_VERSION]
        if version not in MODERN_VERSIONS:
            data = {"supported": list(MODERN_VERSIONS), "requested": version}
            return error_message(message.id, UNSUPPORTED_VERSION, "Unsupported protocol version", data)
        if message.method in _GONE:
            return error_message(message.id, METHOD_NOT_FOUND, f"Method not found: {message.method}")
        return None

    async def post(self, held: Held, via: Via, reply: Reply) -> None:
        message = via.visit.message
        assert message is not None
        emitter = Emitter(reply, via.screen)
        if message.kind != "request":
            await emitter.accepted()
            return
        conversation = held.ready.result()
        if message.method == "server/discover":
            await emitter.answer(result_message(message.id, _discovered(conversation)))
        elif message.method == "subscriptions/listen" and conversation.facts.era == "legacy":
            await self._listen(held, conversation, via, emitter, reply)
        else:
            await self._call(conversation, via, emitter, reply)

    async def _call(self, conversation: Conversation, via: Via, emitter: Emitter, reply: Reply) -> None:
        message = via.visit.message
        assert message is not None
        waiting: Waiting | None = None
        try:
            # A server of the same era keeps its own state with the client: that is none of ours.
            resumed = self._resumed(message, via) if conversation.facts.era == "legacy" else None
            waiting = resumed or self._begun(conversation, message, via)
            waiting.emitter = emitter
            with reply.kept_alive(self._limits.keepalive_s):
                answer = await self._outcome(waiting, message, conversation)
        except Refusal as refused:
            await emitter.answer(error_message(message.id, refused.code, refused.message), 400)
            return
        except RpcError as error:
            code = INVALID_PARAMS if error.code == -32002 else error.code
            failed = rpc_error(message.id, code, error.message, "modern", error.data)
            assert failed.message is not None
            await emitter.answer(dict(failed.message), failed.status)
            return
        except ServerFailed as failed:
            if not emitter.begun:
                raise
            await emitter.answer(error_message(message.id, -32603, failed.message))
            return
        except asyncio.CancelledError:
            # Of this era the end of the connection is the end of the call.
            if waiting is not None and waiting.task is not None:
                waiting.task.cancel()
            raise
        finally:
            if waiting is not None:
                waiting.emitter = None
        await emitter.answer(answer)

    async def _outcome(self, waiting: Waiting, message: RpcMessage, conversation: Conversation) -> dict[str, Any]:
        """Wait until the call is over, or needs something. Raises RpcError, ServerFailed."""
        task = waiting.task
        assert task is not None
        while not task.done():
            if waiting.asked:
                return result_message(message.id, self._suspend(waiting))
            waiting.news.clear()
            await waiting.news.wait()
        result = task.result()
        if isinstance(result, Exception):
            raise result
        if conversation.facts.era == "legacy":
            result = _as_modern(result, message.method, conversation)
        return result_message(message.id, result)

    def _begun(self, conversation: Conversation, message: RpcMessage, via: Via) -> Waiting:
        waiting = Waiting(via.visit.principal, canonical_key(message))
        headers: RawHeaders = ()
        known = via.screen.catalogue.known(str(message.params.get("name")))
        if message.method == "tools/call" and known is not None:
            check_params(via.visit.headers, known.schema, message.params.get("arguments") or {})
            headers = param_headers(known.schema, message.params.get("arguments") or {})
        call = Call(message.method, message.params, self.caller(message), via, headers)
        # Nothing else of this era may be answered with a question.
        may_ask = conversation.facts.era == "legacy" and message.method in NAMED_BY

        async def notice(got: Wire) -> None:
            # A line of the log only comes to those who asked for it.
            if got.get("method") == "notifications/message" and call.caller.log_level is None:
                return
            if waiting.emitter is not None:
                await waiting.emitter.message(got)

        async def question(method: str, params: Object) -> dict[str, Any]:
            return await self._ask(waiting, call.caller, method, params)

        work = conversation.call(call, notice, question if may_ask else None)
        waiting.task = self._tasks().create_task(contained(work, self._limits.call_s + _PATIENCE_S), name="mcp-call")
        waiting.task.add_done_callback(lambda _: waiting.news.set())
        return waiting

    async def _ask(self, waiting: Waiting, caller: Caller, method: str, params: Object) -> dict[str, Any]:
        needed = _NEEDS.get(method)
        if needed is None or needed not in caller.capabilities:
            raise RpcError(METHOD_NOT_FOUND, f"the client does not take {method}")
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        key = f"ask-{len(waiting.asked) + 1}-{secrets.token_hex(3)}"
        waiting.asked[key] = ({"method": method, "params": dict(params)}, future)
        waiting.news.set()
        try:
            return await future
        finally:
            waiting.asked.pop(key, None)

    def _suspend(self, waiting: Waiting) -> dict[str, Any]:
        if len(self._waiting) >= _MOST_WAITING:
            oldest = next(iter(self._waiting))
            self._give_up(oldest)
        state = secrets.token_urlsafe(24)
        self._waiting[state] = waiting
        waiting.until = asyncio.get_running_loop().call_later(_PATIENCE_S, self._give_up, state)
        requests = {key: request for key, (request, _) in waiting.asked.items()}
        return {"resultType": "input_required", "inputRequests": requests, "requestState": state}

    def _give_up(self, state: str) -> None:
        waiting = self._waiting.pop(state, None)
        if waiting is not None and waiting.task is not None:
            waiting.task.cancel()

    def _resumed(self, message: RpcMessage, via: Via) -> Waiting | None:
        """The call that this one goes on with. Raises RpcError for one that is not waiting, or is somebody else's."""
        state = message.params.get("requestState")
        if not isinstance(state, str):
            return None
        waiting = self._waiting.get(state)
        if waiting is None or waiting.whose != via.visit.principal or waiting.what != canonical_key(message):
            raise RpcError(INVALID_PARAMS, "Invalid or expired requestState")
        del self._waiting[state]
        if waiting.until is not None:
            waiting.until.cancel()
        responses = message.params.get("inputResponses")
        for key, value in responses.items() if isinstance(responses, dict) else ():
            asked = waiting.asked.get(key)
            if asked is not None and isinstance(value, dict) and not asked[1].done():
                del waiting.asked[key]
                asked[1].set_result(value)
        return waiting

    async def _listen(self, held: Held, conversation: Conversation, via: Via, emitter: Emitter, reply: Reply) -> None:
        """Stand in for the stream that the newer era has: acknowledge, then pass on what was asked for."""
        message = via.visit.message
        assert message is not None
        wanted = message.params.get("notifications")
        wanted = wanted if isinstance(wanted, dict) else {}
        honoured = {kind: True for kind in _KINDS.values() if wanted.get(kind) is True}
        uris = [uri for uri in wanted.get("resourceSubscriptions") or () if isinstance(uri, str)][:256]
        shown: dict[str, Any] = {**honoured, **({"resourceSubscriptions": uris} if uris else {})}
        meta = {META_SUBSCRIPTION: message.id}
        queue: asyncio.Queue[Wire] = asyncio.Queue(1024)

        def take(got: Wire) -> None:
            method, params = got.get("method"), got.get("params")
            params = params if isinstance(params, dict) else {}
            about = method == "notifications/resources/updated" and params.get("uri") in uris
            if "id" not in got and (about or _KINDS.get(str(method)) in honoured):
                with suppress(asyncio.QueueFull):
                    queue.put_nowait({**got, "params": {**params, "_meta": meta}})

        held.listeners.add(take)
        held.users += 1
        try:
            await emitter.message(
                {
                    "jsonrpc": "2.0",
                    "method": "notifications/subscriptions/acknowledged",
                    "params": {"notifications": shown, "_meta": meta},
                }
            )
            for uri in uris:
                await self._subscribe(conversation, via, "resources/subscribe", uri)
            with reply.kept_alive(self._limits.keepalive_s), suppress(TimeoutError):
                async with asyncio.timeout(self._limits.stream_s):
                    while not held.gone:
                        await emitter.message(await queue.get())
            await emitter.answer(result_message(message.id, {"resultType": "complete", "_meta": meta}))
        finally:
            held.listeners.discard(take)
            held.users -= 1

    async def _subscribe(self, conversation: Conversation, via: Via, method: str, uri: str) -> None:
        async def ignore(got: Wire) -> None:
            pass

        with suppress(RpcError, ServerFailed):
            call = Call(method, {"uri": uri}, Caller(OUR_NAME, {}), via)
            async with asyncio.timeout(self._limits.list_s):
                await conversation.call(call, ignore, None)


async def contained(work: Coroutine[Any, Any, dict[str, Any]], most_s: float) -> dict[str, Any] | Exception:
    """A call in a task of its own. Its failure is for whoever awaits it, not for the group that owns the task."""
    try:
        async with asyncio.timeout(most_s):
            return await work
    except (RpcError, ServerFailed) as error:
        return error
    except TimeoutError:
        return ServerFailed("the call took too long", reason="call_timeout")
    except Exception:
        logger.exception("a call over the bridge failed")
        return ServerFailed("the vault proxy failed; its log says why", reason="internal_error")


def _discovered(conversation: Conversation) -> dict[str, Any]:
    facts = conversation.facts
    if facts.era == "modern":
        return dict(facts.result)
    result: dict[str, Any] = {
        "supportedVersions": list(MODERN_VERSIONS),
        "capabilities": dict(facts.capabilities),
    }
    if facts.instructions is not None:
        result["instructions"] = facts.instructions
    return _as_modern(result, "server/discover", conversation)


def _as_modern(result: Mapping[str, Any], method: str, conversation: Conversation) -> dict[str, Any]:
    meta = result.get("_meta")
    changed = {"resultType": "complete", **result}
    if method in _CACHEABLE:
        changed = {"ttlMs": 0, "cacheScope": "private", **changed}
    if conversation.facts.info:
        changed["_meta"] = {META_SERVER: dict(conversation.facts.info), **(meta if isinstance(meta, dict) else {})}
    return changed
