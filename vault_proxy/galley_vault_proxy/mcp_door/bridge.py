"""Where bytes cannot simply be passed on: the two sides are of different eras, or the server is not behind HTTP."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from galley_vault_proxy.config import Protocol, StdioServer
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.mcp_door.answers import Reply, refusal, rpc_error
from galley_vault_proxy.mcp_door.catalogue import MAX_TOOLS
from galley_vault_proxy.mcp_door.conversation import Call, Caller
from galley_vault_proxy.mcp_door.emitter import Emitter
from galley_vault_proxy.mcp_door.failure import RpcError, ServerFailed, ServerStatus
from galley_vault_proxy.mcp_door.holding import Held, HeldKey, Holding
from galley_vault_proxy.mcp_door.legacy_front import LegacyFront, caller_of
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Via, Wire
from galley_vault_proxy.mcp_door.modern_front import ModernFront
from galley_vault_proxy.mcp_door.relay import Relay
from galley_vault_proxy.mcp_door.screen import Screen
from galley_vault_proxy.mcp_door.visit import SessionSeal, Visit
from galley_vault_proxy.mcp_door.wire import SESSION

_PAGES: Final = 64
_NOT_THIS_ERA: Final = frozenset({400, 404, 405, 406, 415})


class Bridge:
    def __init__(
        self, holding: Holding, relay: Relay, seal: SessionSeal, limits: Limits, clock: Callable[[], float]
    ) -> None:
        self._holding = holding
        self._relay = relay
        self._seal = seal
        self._limits = limits
        self._modern = ModernFront(lambda: holding.tasks, limits)
        self._legacy = LegacyFront(lambda: holding.tasks, limits, clock)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        registry: Registry,
        relay: Relay,
        seal: SessionSeal,
        limits: Limits,
        *,
        stdio: Mapping[str, StdioServer],
        protocols: Mapping[str, Protocol],
        clock: Callable[[], float],
    ) -> AsyncIterator[Self]:
        holding = Holding(registry, relay, limits, stdio=stdio, protocols=protocols, clock=clock)
        async with holding.running():
            yield cls(holding, relay, seal, limits, clock)

    async def post(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        """Pass a message on, over the relay where nothing needs to be bridged. Raises ServerFailed."""
        via = Via(visit, screen)
        if visit.era == "modern":
            await self._post_modern(via, reply)
            return
        session = self._legacy.session(visit.session_id)
        message = visit.message
        if session is not None:
            await self._legacy.post(session, via, reply)
        elif _is_ours(visit.session_id):
            raise ServerStatus(visit.rule.name, 404, [])
        elif message is not None and message.method == "initialize":
            await self._initialize(via, reply)
        elif self._holding.bridged(visit.rule.url):
            id_ = message.id if message is not None else None
            await reply.answer(refusal(400, "the Mcp-Session-Id header is missing: send initialize first", id_=id_))
        else:
            await self._relay.post(visit, screen, reply)

    async def get(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        session = self._legacy.session(visit.session_id)
        if session is not None:
            await self._legacy.get(session, screen, reply)
        elif _is_ours(visit.session_id):
            raise ServerStatus(visit.rule.name, 404, [])
        elif self._holding.bridged(visit.rule.url) or (visit.era == "modern" and visit.session_id is None):
            await reply.answer(refusal(405, "there is no stream outside a session", headers=[(b"allow", b"POST")]))
        else:
            await self._relay.get(visit, screen, reply)

    async def delete(self, visit: Visit, screen: Screen, reply: Reply) -> None:
        session = self._legacy.session(visit.session_id)
        if session is not None:
            await self._legacy.delete(session, reply)
        elif _is_ours(visit.session_id):
            raise ServerStatus(visit.rule.name, 404, [])
        elif self._holding.bridged(visit.rule.url):
            await reply.answer(refusal(405, "there is no such session", headers=[(b"allow", b"POST")]))
        else:
            await self._relay.delete(visit, screen, reply)

    async def list_tools(self, visit: Visit, screen: Screen) -> list[Mapping[str, Any]]:
        """As the client would see them. Raises ServerFailed."""
        via = Via(visit, screen)
        session = self._legacy.session(visit.session_id) if visit.era == "legacy" else None
        if session is not None:
            return await self._listed(session.held, session.caller, via)
        if visit.era == "modern" and visit.message is not None:
            caller = self._modern.caller(visit.message)
            if not await self._is_relayed(via, caller):
                try:
                    return await self._listed(await self._conversation(via, caller), caller, via)
                except RpcError as error:
                    raise ServerFailed(error.message, reason="list_refused") from None
        if _is_ours(visit.session_id):
            raise ServerStatus(visit.rule.name, 404, [])
        if self._holding.is_stdio(visit.rule.url):
            raise ServerFailed("send initialize first", reason="no_session")
        return await self._relay.list_tools(visit, screen)

    async def _post_modern(self, via: Via, reply: Reply) -> None:
        message = via.visit.message
        assert message is not None
        caller = self._modern.caller(message)
        if await self._is_relayed(via, caller):
            await self._relay.post(via.visit, via.screen, reply)
            return
        wrong = self._modern.wrong(message) if message.kind == "request" else None
        if wrong is not None:
            error = wrong["error"]
            status = 404 if error["code"] == -32601 else 400
            await Emitter(reply, via.screen).answer(wrong, status)
            return
        try:
            held = await self._conversation(via, caller)
        except RpcError as error:
            await reply.answer(rpc_error(message.id, error.code, error.message, "modern", error.data))
            return
        held.users += 1
        try:
            await self._modern.post(held, via, reply)
        finally:
            held.users -= 1

    async def _is_relayed(self, via: Via, caller: Caller) -> bool:
        return not self._holding.is_stdio(via.visit.rule.url) and await self._holding.speaks_modern(caller, via)

    async def _conversation(self, via: Via, caller: Caller) -> Held:
        """The one that all requests of one client of the newer era share. It is told what the client can."""
        key = self._key(via.visit, "modern", json.dumps(caller.capabilities, sort_keys=True))
        return await self._holding.get(key, "legacy", caller, via, shared=True)

    async def _initialize(self, via: Via, reply: Reply) -> None:
        visit = via.visit
        message = visit.message
        assert message is not None
        if not self._holding.bridged(visit.rule.url):
            refused = await self._relay.try_post(visit, via.screen, reply, _NOT_THIS_ERA)
            if refused is None:
                return
        caller = caller_of(message)
        version = str(message.params.get("protocolVersion", ""))
        era: Any = "legacy"
        if not self._holding.is_stdio(visit.rule.url) and await self._holding.speaks_modern(caller, via):
            era = "modern"
        try:
            # A session is one client's, so is its conversation.
            key = (*self._key(visit, "legacy", ""), secrets.token_hex(8))
            held = await self._holding.get(key, era, caller, via, version)
        except RpcError as error:
            await reply.answer(rpc_error(message.id, error.code, error.message, "legacy", error.data))
            return
        session = self._legacy.begin(held, caller, via, version)
        sealed = self._seal.seal(session.id, visit.principal, visit.rule.url)
        emitter = Emitter(reply, via.screen, [(SESSION, sealed.encode("latin-1"))])
        await self._legacy.initialized(session, message, emitter)

    def _key(self, visit: Visit, kind: str, capabilities: str) -> HeldKey:
        # A server on stdio got its credential when it was started: another version is another process.
        injection = visit.injection if self._holding.is_stdio(visit.rule.url) else None
        version = "" if injection is None else f"{injection.credential_id} {injection.version}"
        return (*visit.principal, visit.rule.url, kind, version, capabilities)

    async def _listed(self, held: Held, caller: Caller, via: Via) -> list[Mapping[str, Any]]:
        conversation = held.ready.result()
        found: list[Mapping[str, Any]] = []
        params: dict[str, Any] = {}

        async def ignore(got: Wire) -> None:
            pass

        try:
            async with asyncio.timeout(self._limits.list_s):
                for _ in range(_PAGES):
                    result = await conversation.call(Call("tools/list", params, caller, via), ignore, None)
                    tools, cursor = result.get("tools"), result.get("nextCursor")
                    found += [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
                    if not isinstance(cursor, str) or len(found) > MAX_TOOLS:
                        return found
                    params = {"cursor": cursor}
        except TimeoutError:
            raise ServerFailed("the server does not list its tools in time", reason="list_timeout") from None
        except RpcError:
            return found
        raise ServerFailed("the server's list of tools does not end", reason="list_endless")


def _is_ours(session_id: str | None) -> bool:
    return session_id is not None and session_id.startswith("galley-")
