"""One conversation with one server, in whichever era it speaks: calls, what comes with them, and what comes unasked.

Here the two eras look alike: a server of the older one sends requests of its own while a call runs, one of the newer
answers the call with what it needs, and is called again. Both become a question to whoever made the call.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from galley_vault_proxy.mcp_door.beside import ungrouped
from galley_vault_proxy.mcp_door.failure import RpcError, ServerFailed
from galley_vault_proxy.mcp_door.headers import RawHeaders
from galley_vault_proxy.mcp_door.http_link import error_of
from galley_vault_proxy.mcp_door.jsonrpc import Object, error_message
from galley_vault_proxy.mcp_door.link import Link, Via, Wire
from galley_vault_proxy.mcp_door.wire import (
    HANDSHAKE_VERSIONS,
    META_CAPABILITIES,
    META_CLIENT,
    META_LOG_LEVEL,
    META_SUBSCRIPTION,
    META_VERSION,
    METHOD_NOT_FOUND,
    MODERN_VERSIONS,
    Era,
)

Notice: TypeAlias = Callable[[Wire], Awaitable[None]]
"""Takes a notification that belongs to a call."""

Question: TypeAlias = Callable[[str, Object], Awaitable[dict[str, Any]]]
"""Answers a request that a server makes during a call. Raises RpcError."""

OUR_NAME: Final = {"name": "galley-vault-proxy", "version": "1"}
_ROUNDS: Final = 16
_MOST_QUESTIONS: Final = 32
_ENVELOPE: Final = frozenset({META_VERSION, META_CAPABILITIES, META_CLIENT, META_LOG_LEVEL, META_SUBSCRIPTION})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself at the beginning. `result` is its whole answer."""

    era: Era
    version: str
    capabilities: Object
    info: Object
    instructions: str | None
    result: Object


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, as the server is told."""

    info: Object
    capabilities: Object
    log_level: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    params: Object
    caller: Caller
    via: Via
    headers: RawHeaders = ()


class Conversation:
    def __init__(self, link: Link, facts: Facts) -> None:
        self._link = link
        self.facts = facts
        self._ids = itertools.count(1)
        # Calls under way that can be asked something, the youngest last, and how.
        self._asking: dict[int, Callable[[Wire], None]] = {}

    async def call(self, call: Call, notice: Notice, question: Question | None) -> dict[str, Any]:
        """Make a call and return its result. Raises RpcError, ServerFailed. Cancelled, it cancels the call.

        Without a `question` what a newer server still needs is the result, as it is.
        """
        given: dict[str, Any] = {}
        for _ in range(_ROUNDS):
            result = await self._once(call, given, notice, question)
            needs = self.facts.era == "modern" and result.get("resultType") == "input_required"
            if not needs or question is None:
                return result
            given = {"inputResponses": await _answers(result.get("inputRequests"), question)}
            if "requestState" in result:
                given["requestState"] = result["requestState"]
        raise ServerFailed("the server asks again and again", reason="asks_endlessly")

    async def notify(self, method: str, params: Object, via: Via) -> None:
        await self._link.tell({"jsonrpc": "2.0", "method": method, "params": dict(params)}, via)

    async def answer(self, answer: Wire, via: Via) -> None:
        """Answer a request that the server made outside any call."""
        await self._link.tell(answer, via)

    def put_to_a_call(self, asked: Wire) -> bool:
        """Have a request that the server made outside any call answered as if the youngest call had brought it.

        Clients that can only be asked during a call would else never be asked, and servers wait for an answer.
        """
        if not self._asking:
            return False
        next(reversed(self._asking.values()))(asked)
        return True

    async def close(self) -> None:
        await self._link.close()

    async def _once(
        self, call: Call, given: Mapping[str, Any], notice: Notice, question: Question | None
    ) -> dict[str, Any]:
        id_ = next(self._ids)
        token = (
            call.params.get("_meta", {}).get("progressToken") if isinstance(call.params.get("_meta"), dict) else None
        )
        message = self._message(id_, call, given, has_token=token is not None)
        asked: list[asyncio.Task[None]] = []
        with ungrouped():
            async with (
                asyncio.TaskGroup() as tasks,
                aclosing(self._link.ask(message, call.via, call.headers)) as messages,
            ):

                def ask(got: Wire) -> None:
                    if sum(not task.done() for task in asked) >= _MOST_QUESTIONS:
                        raise ServerFailed("the server asks too many things at once", reason="asks_endlessly")
                    asked.append(tasks.create_task(self._asked(got, question, call.via), name="mcp-question"))

                if question is not None:
                    self._asking[id_] = ask
                try:
                    async for got in messages:
                        if "method" not in got:
                            return _result(got)
                        if "id" in got:
                            ask(got)
                        else:
                            await notice(_with_token(got, id_, token))
                finally:
                    self._asking.pop(id_, None)
                    # What it has asked and not waited for nobody needs to answer any more.
                    for task in asked:
                        task.cancel()
        raise ServerFailed("the server did not answer", reason="no_answer")

    def _message(self, id_: int, call: Call, given: Mapping[str, Any], *, has_token: bool) -> Wire:
        params = {**call.params, **given}
        old = params.pop("_meta", {})
        meta = {key: value for key, value in old.items() if key not in _ENVELOPE} if isinstance(old, dict) else {}
        if has_token:
            meta["progressToken"] = id_
        if self.facts.era == "modern":
            meta |= envelope(call.caller)
        if meta:
            params["_meta"] = meta
        return {"jsonrpc": "2.0", "id": id_, "method": call.method, "params": params}

    async def _asked(self, asked: Wire, question: Question | None, via: Via) -> None:
        """Have a request of the server answered. In the newer era there are none."""
        method, params = str(asked["method"]), asked.get("params")
        answer: Wire
        try:
            if method == "ping":
                result: dict[str, Any] = {}
            elif question is None:
                raise RpcError(METHOD_NOT_FOUND, f"{method} cannot be asked here")
            else:
                result = await question(method, params if isinstance(params, dict) else {})
            answer = {"jsonrpc": "2.0", "id": asked["id"], "result": result}
        except RpcError as error:
            answer = error_message(asked["id"], error.code, error.message, error.data)
        try:
            await self._link.tell(answer, via)
        except ServerFailed as failed:
            logger.debug("an answer could not be given: %s", failed)


async def handshake(link: Link, caller: Caller, via: Via, *, version: str | None = None) -> Facts:
    """Begin a conversation with a server of the older era. Raises RpcError, ServerFailed."""
    params = {
        "protocolVersion": version if version in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1],
        "capabilities": dict(caller.capabilities),
        "clientInfo": dict(caller.info),
    }
    result = await _ask(link, "initialize", params, via)
    agreed = result.get("protocolVersion")
    if not isinstance(agreed, str):
        raise ServerFailed("the server does not say which protocol it speaks", reason="bad_answer")
    return _facts("legacy", agreed, result)


async def discover(link: Link, caller: Caller, via: Via) -> Facts | None:
    """What a server of the newer era says of itself; None for one that is not. Raises ServerFailed, RpcError."""
    result = await _ask(link, "server/discover", {"_meta": envelope(caller)}, via)
    versions = result.get("supportedVersions")
    if not isinstance(versions, list) or not any(version in MODERN_VERSIONS for version in versions):
        return None
    return _facts("modern", MODERN_VERSIONS[-1], result)


def envelope(caller: Caller) -> dict[str, Any]:
    meta = {
        META_VERSION: MODERN_VERSIONS[-1],
        META_CAPABILITIES: dict(caller.capabilities),
        META_CLIENT: dict(caller.info),
    }
    if caller.log_level is not None:
        meta[META_LOG_LEVEL] = caller.log_level
    return meta


def _facts(era: Era, version: str, result: Mapping[str, Any]) -> Facts:
    meta = result.get("_meta")
    info = result.get("serverInfo") or (
        meta.get("io.modelcontextprotocol/serverInfo") if isinstance(meta, dict) else {}
    )
    capabilities, instructions = result.get("capabilities"), result.get("instructions")
    return Facts(
        era,
        version,
        capabilities if isinstance(capabilities, dict) else {},
        info if isinstance(info, dict) else {},
        instructions if isinstance(instructions, str) else None,
        result,
    )


async def _ask(link: Link, method: str, params: Mapping[str, Any], via: Via) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "id": f"galley-{method}", "method": method, "params": dict(params)}
    async with aclosing(link.ask(message, via)) as messages:
        async for got in messages:
            if "method" not in got:
                return _result(got)
    raise ServerFailed("the server did not answer", reason="no_answer")


async def _answers(requests: object, question: Question) -> dict[str, Any]:
    """Put all questions at once, and wait for all answers."""
    if not isinstance(requests, dict):
        return {}
    if len(requests) > _MOST_QUESTIONS:
        raise ServerFailed("the server asks too many things at once", reason="asks_endlessly")
    async with asyncio.TaskGroup() as tasks:
        asked = {
            str(key): tasks.create_task(_answer(request, question), name="mcp-input")
            for key, request in requests.items()
        }
    return {key: task.result() for key, task in asked.items()}


async def _answer(request: object, question: Question) -> dict[str, Any]:
    method = request.get("method") if isinstance(request, dict) else None
    params = request.get("params") if isinstance(request, dict) else None
    try:
        return await question(str(method), params if isinstance(params, dict) else {})
    except RpcError:
        # There is no place for an error among the answers: whoever was asked has not answered.
        return {"action": "cancel"}


def _result(answer: Wire) -> dict[str, Any]:
    error = error_of(answer)
    if error is not None:
        raise error
    result = answer.get("result")
    if not isinstance(result, dict):
        raise ServerFailed("the server answered with something that is no result", reason="bad_answer")
    return result


def _with_token(notice: Wire, id_: int, token: Any) -> Wire:
    params = notice.get("params")
    if isinstance(params, dict) and params.get("progressToken") == id_ and token is not None:
        return {**notice, "params": {**params, "progressToken": token}}
    return notice
