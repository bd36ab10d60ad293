"""The conversations that the bridge keeps open, each owned by one task from its beginning to its end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

from galley_vault_proxy.config import Protocol, StdioServer
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.grant.token import Grant
from galley_vault_proxy.mcp_door.beside import ungrouped
from galley_vault_proxy.mcp_door.conversation import Caller, Conversation, Facts, discover, handshake
from galley_vault_proxy.mcp_door.failure import RpcError, ServerFailed, ServerStatus
from galley_vault_proxy.mcp_door.http_link import HttpLink
from galley_vault_proxy.mcp_door.jsonrpc import error_message
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.link import Pipe, Unasked, Via, Wire
from galley_vault_proxy.mcp_door.relay import Relay
from galley_vault_proxy.mcp_door.sse_link import run_sse
from galley_vault_proxy.mcp_door.stdio_link import run_stdio
from galley_vault_proxy.mcp_door.wire import METHOD_NOT_FOUND, MODERN_ERRORS, Era
from galley_vault_proxy.turns import Turns

HeldKey: TypeAlias = tuple[str, ...]

_IDLE_S: Final = 600.0
_LOOK_S: Final = 30.0
_PROBE_S: Final = 5.0
_KNOWN_S: Final = 600.0
_MOST: Final = 512
_MOST_OF_ONE: Final = 32
_MOST_STRAYS: Final = 64
_CALM_S: Final = 30.0
_NOT_STREAMABLE: Final = frozenset({400, 404, 405, 406, 415})

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Held:
    """One open conversation. `listeners` take what the server sends unasked."""

    key: HeldKey
    grant: Grant
    ready: "asyncio.Future[Conversation]"
    last_used: float
    listeners: set[Unasked] = field(default_factory=set)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    users: int = 0
    strays: int = 0
    gone: bool = False

    def answered(self) -> None:
        self.strays -= 1

    def unasked(self, message: Wire) -> None:
        for listener in tuple(self.listeners):
            listener(message)


class Holding:
    def __init__(
        self,
        registry: Registry,
        relay: Relay,
        limits: Limits,
        *,
        stdio: Mapping[str, StdioServer],
        protocols: Mapping[str, Protocol],
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._relay = relay
        self._limits = limits
        self._stdio = stdio
        self._protocols = protocols
        self._clock = clock
        self._held: dict[HeldKey, Held] = {}
        self._modern: dict[str, tuple[bool, float]] = {}
        self._crashes: dict[str, tuple[int, float]] = {}
        self._probing = Turns()
        self.tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        async with asyncio.TaskGroup() as self.tasks:
            idle = self.tasks.create_task(self._end_idle(), name="mcp-idle")
            try:
                yield self
            finally:
                idle.cancel()
                for held in self._held.values():
                    held.stop.set()

    def is_stdio(self, url: str) -> bool:
        return url.startswith("stdio:")

    def bridged(self, url: str) -> bool:
        """Whether it is known that this server cannot be talked to in the older era."""
        return self._protocols.get(url) == "modern" or self.is_stdio(url)

    async def speaks_modern(self, caller: Caller, via: Via) -> bool:
        """Whether an HTTP server is of the newer era. Asked once, then known for a while. Raises ServerFailed."""
        url = via.visit.rule.url
        fixed = self._protocols.get(url, "auto")
        if fixed != "auto":
            return fixed == "modern"
        known = self._modern.get(url)
        if known is not None and self._clock() <= known[1]:
            return known[0]
        async with self._probing.take(url):
            known = self._modern.get(url)
            if known is None or self._clock() > known[1]:
                link = HttpLink(self._relay, self._limits, _ignore, modern=True)
                known = self._modern[url] = (await _is_modern(link, caller, via), self._clock() + _KNOWN_S)
        return known[0]

    async def get(
        self,
        key: HeldKey,
        era: Era | None,
        caller: Caller,
        via: Via,
        version: str | None = None,
        *,
        shared: bool = False,
    ) -> Held:
        """The conversation of this key, begun now if there is none. Raises ServerFailed, RpcError.

        `shared`: by clients that can only be asked something during a call.
        """
        held = self._held.get(key)
        if held is None or held.gone:
            self._require_room(key)
            future: asyncio.Future[Conversation] = asyncio.get_running_loop().create_future()
            held = self._held[key] = Held(key, via.visit.grant, future, self._clock())
            if shared:
                held.listeners.add(lambda got, held=held: self._stray(held, got, via))  # type: ignore[misc]
            self.tasks.create_task(self._own(held, era, caller, via, version), name=f"mcp-{via.visit.rule.name}")
        held.last_used = self._clock()
        if via.visit.grant.expires_at > held.grant.expires_at:
            held.grant = via.visit.grant
        await asyncio.shield(held.ready)
        return held

    def _stray(self, held: Held, got: Wire, via: Via) -> None:
        """A question that belongs to no call. Whatever becomes of it, the server must not wait for an answer."""
        if "id" not in got:
            return
        if not held.ready.done():
            held.ready.add_done_callback(lambda _: self._stray(held, got, via))
            return
        if held.ready.cancelled() or held.ready.exception() is not None:
            return
        conversation = held.ready.result()
        answer: Wire
        if got["method"] == "ping":
            answer = {"jsonrpc": "2.0", "id": got["id"], "result": {}}
        elif conversation.put_to_a_call(got):
            return
        else:
            answer = error_message(got["id"], METHOD_NOT_FOUND, f"{got['method']} can only be asked during a call")
        if held.strays < _MOST_STRAYS:
            held.strays += 1
            telling = self.tasks.create_task(_answered(conversation, answer, via), name="mcp-stray")
            telling.add_done_callback(lambda _: held.answered())

    async def _own(self, held: Held, era: Era | None, caller: Caller, via: Via, version: str | None) -> None:
        began = self._clock()
        url = via.visit.rule.url
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._limits.list_s + 2 * _PROBE_S):
                    conversation = await self._begin(stack, held, era, caller, via, version)
                if not held.ready.done():
                    held.ready.set_result(conversation)
                await self._last(held)
                held.gone = True
                await conversation.close()
        except (ServerFailed, RpcError) as error:
            self._failed(held, error)
        except TimeoutError:
            self._failed(held, ServerFailed("the server does not begin a conversation in time", reason="begin_timeout"))
        except Exception:
            logger.exception("a conversation with the MCP server %s failed", via.visit.rule.name)
            self._failed(held, ServerFailed("the vault proxy failed; its log says why", reason="internal_error"))
        finally:
            held.gone = True
            if not held.ready.done():
                held.ready.cancel()
            if self._held.get(held.key) is held:
                del self._held[held.key]
            self._note_end(url, began, held)

    def _failed(self, held: Held, error: Exception) -> None:
        if not held.ready.done():
            held.ready.set_exception(error)
            held.ready.exception()  # whoever asked may have gone meanwhile

    async def _begin(
        self, stack: AsyncExitStack, held: Held, era: Era | None, caller: Caller, via: Via, version: str | None
    ) -> Conversation:
        if self.is_stdio(via.visit.rule.url):
            pipe, facts = await self._begin_stdio(stack, held, caller, via, version)
            conversation = Conversation(pipe, facts)
        elif era == "modern":
            link = HttpLink(self._relay, self._limits, held.unasked, modern=True)
            found = await discover(link, caller, via)
            if found is None:
                raise ServerFailed("the server speaks no protocol that the vault proxy knows", reason="bad_protocol")
            return Conversation(link, found)
        else:
            conversation = await self._begin_legacy(stack, held, caller, via, version)
        if conversation.facts.era == "legacy":
            await conversation.notify("notifications/initialized", {}, via)
        return conversation

    async def _begin_legacy(
        self, stack: AsyncExitStack, held: Held, caller: Caller, via: Via, version: str | None
    ) -> Conversation:
        link = HttpLink(self._relay, self._limits, held.unasked, modern=False)
        try:
            facts = await handshake(link, caller, via, version=version)
        except ServerStatus as failed:
            if failed.status not in _NOT_STREAMABLE:
                raise
            try:
                pipe = await stack.enter_async_context(run_sse(self._relay, self._limits, held.unasked, via))
            except ServerStatus:
                raise failed from None
            return Conversation(pipe, await handshake(pipe, caller, via, version=version))
        link.settled(facts.version)
        listening = self.tasks.create_task(link.listen(), name="mcp-listen")
        stack.callback(listening.cancel)
        return Conversation(link, facts)

    async def _begin_stdio(
        self, stack: AsyncExitStack, held: Held, caller: Caller, via: Via, version: str | None
    ) -> tuple[Pipe, Facts]:
        server = self._stdio.get(via.visit.rule.url.removeprefix("stdio:"))
        if server is None:
            raise ServerFailed("the vault proxy runs no stdio server of that name", reason="no_such_server")
        self._require_calm(via.visit.rule.url)

        async def start() -> Pipe:
            run = run_stdio(server, via.visit.injection, via.screen.patterns, self._limits, held.unasked)
            return await stack.enter_async_context(run)

        pipe = await start()
        known = self._modern.get(via.visit.rule.url)
        modern = server.protocol != "legacy" and (known is None or known[0] or self._clock() > known[1])
        facts = None
        with ungrouped():
            async with asyncio.TaskGroup() as tasks:
                probing = tasks.create_task(_probe(pipe, caller, via) if modern else _nothing(), name="mcp-probe")
                await asyncio.wait([probing], timeout=None if server.protocol == "modern" else _PROBE_S)
                facts = probing.result() if probing.done() else None
                if facts is None and server.protocol != "modern":
                    # Some servers do not survive a question that they do not know.
                    pipe = await start() if pipe.gone else pipe
                    facts = await _by_handshake(pipe, caller, via, version, probing)
                probing.cancel()
        if facts is None:
            raise ServerFailed(
                f"the stdio server {server.name} does not speak the newer protocol", reason="bad_protocol"
            )
        self._modern[via.visit.rule.url] = (facts.era == "modern", self._clock() + _KNOWN_S)
        stack.callback(held.stop.set)
        pipe.on_lost = held.stop.set
        return pipe, facts

    async def _last(self, held: Held) -> None:
        """Return when the conversation is to end: nobody needs it, or nobody may have it any more."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._while_granted(held), name="mcp-granted")
            await held.stop.wait()
            watching.cancel()

    async def _while_granted(self, held: Held) -> None:
        while True:
            grant = held.grant
            await self._registry.ended(grant)
            if held.grant is grant:
                held.stop.set()
                return

    async def _end_idle(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self._clock()
            for held in self._held.values():
                if not held.users and now - held.last_used > _IDLE_S:
                    held.stop.set()

    def _require_room(self, key: HeldKey) -> None:
        of_one = sum(1 for known in self._held if known[:3] == key[:3])
        if of_one >= _MOST_OF_ONE or len(self._held) >= _MOST:
            idle = [
                held
                for held in self._held.values()
                if not held.users and (of_one < _MOST_OF_ONE or held.key[:3] == key[:3])
            ]
            if not idle:
                raise ServerFailed("too many conversations with MCP servers are open", reason="too_many")
            min(idle, key=lambda held: held.last_used).stop.set()

    def _require_calm(self, url: str) -> None:
        crashes, at = self._crashes.get(url, (0, 0.0))
        wait = at + min(_CALM_S, 2.0 ** (crashes - 3)) - self._clock()
        if crashes >= 3 and wait > 0:
            raise ServerFailed(
                f"the stdio server {url.removeprefix('stdio:')} keeps ending as soon as it is started: "
                f"it is tried again in {wait:.0f} s",
                reason="crash_loop",
            )

    def _note_end(self, url: str, began: float, held: Held) -> None:
        if not self.is_stdio(url):
            return
        failed = held.ready.cancelled() or held.ready.exception() is not None
        if failed or self._clock() - began < 1.0:
            self._crashes[url] = (self._crashes.get(url, (0, 0.0))[0] + 1, self._clock())
        else:
            self._crashes.pop(url, None)


async def _is_modern(link: HttpLink, caller: Caller, via: Via) -> bool:
    """Only an answer of the newer era says so; whatever else a server answers to the question, it is of the older."""
    try:
        async with asyncio.timeout(_PROBE_S):
            return await discover(link, caller, via) is not None
    except RpcError as error:
        return error.code in MODERN_ERRORS
    except (ServerStatus, TimeoutError):
        return False
    except ServerFailed as failed:
        if failed.reason in ("bad_answer", "no_answer"):
            return False
        raise


async def _probe(pipe: Pipe, caller: Caller, via: Via) -> Facts | None:
    try:
        return await discover(pipe, caller, via)
    except (RpcError, ServerFailed):
        return None


async def _nothing() -> None:
    pass


async def _by_handshake(
    pipe: Pipe, caller: Caller, via: Via, version: str | None, probing: "asyncio.Task[Facts | None]"
) -> Facts:
    try:
        return await handshake(pipe, caller, via, version=version)
    except RpcError:
        # One of the newer era that was slow to start: it has answered the first question meanwhile, and since then it
        # takes no handshake.
        late = await probing
        if late is None:
            raise
        return late


async def _answered(conversation: Conversation, answer: Wire, via: Via) -> None:
    with suppress(ServerFailed):
        await conversation.answer(answer, via)


def _ignore(message: Wire) -> None:
    pass
