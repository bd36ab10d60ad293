"""What each session holds at the vault proxy: one grant, made at first need, renewed in time, ended with the session.

The brain's requests carry the grant itself. What the sandbox gets is narrowed from it, without asking the proxy: only
the tools of MCP servers that nobody has to be asked about.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol, Self

from galley_vault_proxy import narrow
from galley_vault_proxy.errors import ProxyError

from galley_server.broker.client import ProxyClient
from galley_server.errors import InvalidRequest, NotFound, RequestError
from galley_server.hands.access import Access, ServerAccess
from galley_server.runtime.turnstile import Turnstile
from galley_server.secret import Secret
from galley_server.wire.environment import Limited, Unrestricted

LIFE_S: Final = 12 * 3600
"""Long, because a program in a sandbox keeps the token that it was started with. Ending a session revokes it at once,
and it counts on the session's own tunnel only."""

_RENEW_AFTER_S: Final = LIFE_S / 2
_END_AGAIN_S: Final = (1.0, 5.0, 30.0, 120.0)
_PAGE: Final = 1000

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """`token` is the brain's, `sandbox_token` what programs in the sandbox get. `renew_at` by the monotonic clock."""

    id: str
    token: Secret
    sandbox_token: Secret
    access: Access
    renew_at: float


class AccessSource(Protocol):
    """What a session may reach, as its log says."""

    async def access(self, session_id: str) -> Access:
        """Raises NotFound for a session that does not exist or is over."""
        ...

    async def over(self, session_id: str) -> bool:
        """Whether there was such a session, and it is archived, terminated or deleted."""
        ...


class Grants:
    """Made by `open`."""

    def __init__(self, client: ProxyClient, source: AccessSource, tasks: asyncio.TaskGroup) -> None:
        self._client = client
        self._source = source
        self._tasks = tasks
        self._turnstile = Turnstile()
        self._held: dict[str, Grant] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, client: ProxyClient, source: AccessSource) -> AsyncIterator[Self]:
        """Grants outlive this process: the proxy keeps them, and the next server makes new ones beside."""
        async with asyncio.TaskGroup() as tasks:
            grants = cls(client, source, tasks)
            grants._in_background(grants._end_what_is_over(), "end sessions that are over")
            try:
                yield grants
            finally:
                for task in grants._ending:
                    task.cancel()

    async def of(self, session_id: str, access: Access | None = None) -> Grant:
        """The session's grant, for this `access`; None takes what the log says. Raises RequestError.

        One that was made for another access is revoked: what an agent lost it has no more.
        """
        async with self._turnstile.at(session_id):
            held = self._held.get(session_id)
            wanted = access or (held.access if held is not None else await self._source.access(session_id))
            if held is not None and held.access == wanted and time.monotonic() < held.renew_at:
                return held
            fresh = self._held[session_id] = await self._mint(session_id, wanted)
            self._tell(session_id)
            if held is not None and held.access != wanted:
                await self._revoke(held)
            return fresh

    async def refused(self, session_id: str, grant: Grant) -> bool:
        """The proxy does not take this grant (any more). Whether another may be asked for: not if it was revoked.

        Who revoked it meant it, and must not find the session with a new one a moment later.
        """
        try:
            found = await self._client.ask("GET", f"/v1/grants/{grant.id}")
        except NotFound:
            status = "unknown"  # its state was lost, and everything counts as revoked that it does not list
        except RequestError:
            return False
        else:
            status = str(found.get("status"))
        if status in ("unknown", "expired") and self._held.get(session_id) is grant:
            del self._held[session_id]
            self._tell(session_id)
        return status in ("unknown", "expired")

    async def changed(self, session_id: str) -> None:
        """The session's agent was given other servers or tools: its grant follows at once. Never raises."""
        if session_id not in self._held:
            return
        try:
            await self.of(session_id, await self._source.access(session_id))
        except RequestError as error:
            # What the session asks for next it asks for with its new access, and then it is made anew.
            logger.warning("the grant of %s could not follow its agent: %s", session_id, error.message)

    async def change(self, session_id: str, grant: Grant, patience_s: float) -> None:
        """Return when the session's grant is not this one (any more), or after so long."""
        if self._held.get(session_id) is not grant:
            return
        event = self._changes.setdefault(session_id, asyncio.Event())
        try:
            async with asyncio.timeout(patience_s):
                await event.wait()
        except TimeoutError:
            return

    async def end(self, session_id: str) -> None:
        """Revoke everything of a session that is over. Tried until it is done, and by the next server again."""
        self._held.pop(session_id, None)
        self._tell(session_id)
        try:
            await self._client.ask("DELETE", f"/v1/sessions/{session_id}")
        except RequestError as error:
            logger.warning("%s is not ended at the vault proxy yet: %s", session_id, error.message)
            self._in_background(self._end_later(session_id), f"end {session_id}")

    async def _mint(self, session_id: str, access: Access) -> Grant:
        now = time.monotonic()
        issued = await self._client.ask("POST", "/v1/grants", request_of(session_id, access))
        servers = reachable(access)
        token = str(issued["token"])
        own = _narrowed(token, servers, sandbox=False)
        sandbox = _narrowed(token, servers, sandbox=True)
        return Grant(str(issued["id"]), Secret(own), Secret(sandbox), access, now + _RENEW_AFTER_S)

    async def _revoke(self, grant: Grant) -> None:
        try:
            await self._client.ask("DELETE", f"/v1/grants/{grant.id}")
        except NotFound:
            return

    def _tell(self, session_id: str) -> None:
        event = self._changes.pop(session_id, None)
        if event is not None:
            event.set()

    async def _end_later(self, session_id: str) -> None:
        for attempt in count():
            await asyncio.sleep(_END_AGAIN_S[min(attempt, len(_END_AGAIN_S) - 1)])
            try:
                await self._client.ask("DELETE", f"/v1/sessions/{session_id}")
            except RequestError as error:
                logger.info("%s is not ended at the vault proxy yet: %s", session_id, error.message)
            else:
                return

    async def _end_what_is_over(self) -> None:
        """What a server before this one did not come to. Sessions that this home never had are somebody else's."""
        after = ""
        try:
            while True:
                page = await self._client.ask("GET", f"/v1/sessions?after={after}&limit={_PAGE}")
                for listed in page["data"]:
                    if await self._source.over(listed["id"]):
                        await self.end(listed["id"])
                if not page["has_more"]:
                    return
                after = page["data"][-1]["id"]
        except RequestError as error:
            logger.warning("sessions that are over were not looked for at the vault proxy: %s", error.message)

    def _in_background(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._tasks.create_task(_guarded(work, name), name=name)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _guarded(work: Coroutine[None, None, None], name: str) -> None:
    """The task boundary: what nobody foresaw takes nothing else down."""
    try:
        await work
    except Exception:
        logger.exception("%s failed", name)


def reachable(access: Access) -> tuple[ServerAccess, ...]:
    return tuple(server for server in access.servers if server.blocked is None and not server.enabled.empty)


def request_of(session_id: str, access: Access) -> dict[str, Any]:
    """The body of `POST /v1/grants`. Pure."""
    servers: list[dict[str, Any]] = []
    for server in reachable(access):
        servers.append({"name": server.door, "url": server.url})
        if server.enabled.only is not None:
            servers[-1]["tools"] = sorted(server.enabled.only - server.enabled.without)
    asked: dict[str, Any] = {
        "session_id": session_id,
        "vault_ids": list(access.vault_ids),
        "mcp_servers": servers,
        "tunnel": session_id,
        "expires_in": LIFE_S,
        "network": "limited",
    }
    match access.networking:
        case Unrestricted():
            asked["network"] = "unrestricted"
        case Limited(allowed_hosts=hosts, allow_mcp_servers=mcp, allow_package_managers=packages):
            asked["hosts"] = [{"host": host} for host in dict.fromkeys(hosts)]
            asked["presets"] = [
                *(["package_managers"] if packages else []),
                *(["mcp_servers"] if mcp else []),
            ]
        case None:
            pass
    return asked


def _narrowed(token: str, servers: tuple[ServerAccess, ...], *, sandbox: bool) -> str:
    """What is left for the brain (what is enabled) or for the sandbox (of that, what nobody is asked about)."""
    kept = [server for server in servers if not (sandbox and server.unasked.empty)]
    only: dict[str, frozenset[str]] = {}
    without: dict[str, frozenset[str]] = {}
    for server in kept:
        tools = server.unasked if sandbox else server.enabled
        if tools.only is not None:
            only[server.door] = tools.only
        if tools.without:
            without[server.door] = tools.without
    if not sandbox and not without:
        return token  # the grant itself says the rest
    try:
        return narrow(token, servers=[server.door for server in kept], tools=only or None, without=without or None)
    except ProxyError as error:
        raise InvalidRequest(f"the grant of this session cannot be narrowed: {error.message}") from None
