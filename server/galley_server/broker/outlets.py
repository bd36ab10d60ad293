"""The way out of each sandbox: ports on its loopback, carried over the hand's stream to the vault proxy's sockets."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from galley_sandbox.errors import FileRefused, SandboxError
from galley_sandbox.port import Hand
from galley_sandbox.way_out import EGRESS, MCP, PORTS, Door, WayOut, environment_of, equip, forward, renew

from galley_server.broker.client import ProxyClient
from galley_server.broker.grants import Grant, Grants
from galley_server.errors import NotFound, RequestError, Unavailable

LOOK_S: Final = 60.0
"""How often it is looked whether the session's variables are still the same: a credential may have been added."""

PATIENCE_S: Final = 10.0
"""How long the first call of a sandbox waits for its way out."""

_AGAIN_S: Final = 5.0
_NO_WAY: Final = "The network of this sandbox is not there yet: {reason}."

logger: Final = logging.getLogger(__name__)


class ProxyOutlets:
    """Implements Outlets. Made by `open`."""

    def __init__(self, client: ProxyClient, grants: Grants, tasks: asyncio.TaskGroup) -> None:
        self._client = client
        self._grants = grants
        self._tasks = tasks
        self._authority: bytes | None = None

    @classmethod
    @asynccontextmanager
    async def running(cls, client: ProxyClient, grants: Grants) -> AsyncIterator[Self]:
        """Whoever has an outlet open closes it before this is left."""
        async with asyncio.TaskGroup() as tasks:
            yield cls(client, grants, tasks)

    @asynccontextmanager
    async def open(self, session_id: str, hand: Hand) -> AsyncIterator[str | None]:
        note: str | None = None
        given: _Given | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                given = await self._equip(session_id, hand)
        except NotFound:
            yield None  # the session is over
            return
        except (RequestError, FileRefused, TimeoutError) as error:
            # The tools of the sandbox do not need the network. It is tried again while they run.
            reason = str(error) or "the vault proxy does not answer"
            logger.warning("%s has no way out yet: %s", session_id, reason)
            note = _NO_WAY.format(reason=reason.rstrip("."))
        task = self._tasks.create_task(self._attend(session_id, hand, given), name=f"outlet of {session_id}")
        try:
            yield note
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def end(self, session_id: str) -> None:
        await self._grants.end(session_id)

    async def _equip(self, session_id: str, hand: Hand) -> "_Given":
        """Everything that a sandbox needs once per stream. Raises RequestError, FileRefused, SandboxLost."""
        grant = await self._grants.of(session_id)
        if grant.access.networking is None:
            return _Given(grant, {}, {})
        variables, authority = await self._variables(session_id, grant), await self._trusted()
        ports = await hand.listen(PORTS)
        way = WayOut(ports, grant.sandbox_token.reveal(), authority, variables)
        await equip(hand, way)
        return _Given(grant, ports, environment_of(way))

    async def _attend(self, session_id: str, hand: Hand, given: "_Given | None") -> None:
        """Carry connections and keep the token fresh, until the stream drops or the session is over."""
        try:
            while given is None:
                await asyncio.sleep(_AGAIN_S)
                try:
                    given = await self._equip(session_id, hand)
                except NotFound:
                    return
                except (RequestError, FileRefused) as error:
                    logger.info("%s has no way out yet: %s", session_id, error)
            if given.ports:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(forward(hand, self._doors(session_id)), name="carry")
                    tasks.create_task(self._renew(session_id, hand, given), name="renew")
        except* (SandboxError, NotFound):
            pass  # the stream is gone, or the session: whoever holds the line sees to the rest
        except* Exception:
            # The task boundary: what nobody foresaw takes no other sandbox's way out along.
            logger.exception("the way out of %s failed", session_id)

    async def _renew(self, session_id: str, hand: Hand, given: "_Given") -> None:
        """Returns never. Raises NotFound when the session is over, SandboxLost when the stream is."""
        while True:
            await self._grants.change(session_id, given.grant, LOOK_S)
            try:
                grant = await self._grants.of(session_id)
                variables = await self._variables(session_id, grant)
            except NotFound:
                raise
            except RequestError as error:
                logger.info("the way out of %s could not be looked after: %s", session_id, error.message)
                await asyncio.sleep(_AGAIN_S)
                continue
            way = WayOut(given.ports, grant.sandbox_token.reveal(), await self._trusted(), variables)
            wanted = environment_of(way)
            if wanted != given.environment:
                await renew(hand, way)
                gone = given.environment.keys() - wanted.keys()
                if gone:
                    await hand.set_environment(dict.fromkeys(gone))
            given = _Given(grant, given.ports, wanted)

    async def _variables(self, session_id: str, grant: Grant) -> Mapping[str, str]:
        """What stands for each secret of the session. Raises RequestError."""
        try:
            found = await self._client.ask("GET", f"/v1/sessions/{session_id}/environment")
        except NotFound:
            # The proxy does not list the session, so the grant does not count any more.
            again = await self._grants.refused(session_id, grant)
            raise Unavailable(
                "the vault proxy lost this session's grant; it is made anew"
                if again
                else "this session's grant was revoked at the vault proxy"
            ) from None
        return {str(name): str(value) for name, value in found["variables"].items()}

    async def _trusted(self) -> bytes:
        if self._authority is None:
            self._authority = str((await self._client.ask("GET", "/v1/egress"))["ca_pem"]).encode()
        return self._authority

    def _doors(self, session_id: str) -> Mapping[str, Door]:
        line = self._client.greeting(session_id)
        return {
            EGRESS: Door(str(self._client.sockets.egress), line),
            MCP: Door(str(self._client.sockets.api), line),
        }


@dataclass(frozen=True, slots=True)
class _Given:
    """What a sandbox was given last. No ports: it has no network."""

    grant: Grant
    ports: Mapping[str, int]
    environment: Mapping[str, str]
