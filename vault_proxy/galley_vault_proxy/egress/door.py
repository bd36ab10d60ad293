"""The door itself: it listens, bounds how many are connected, and hands each connection on."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Self

from anyio import to_thread

from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials.port import CredentialSource
from galley_vault_proxy.egress.ca import Authority
from galley_vault_proxy.egress.connection import Connection, House, Seats
from galley_vault_proxy.egress.gateway import Means
from galley_vault_proxy.egress.stream import Socket
from galley_vault_proxy.egress.upstream import client_context
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.serving import Address, bind, unix_socket
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.secret import Secret

MOST: Final = 2048
"""Most connections at a time; one more is closed without a word."""

_FAREWELL_S: Final = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the door is built on. `upstream_tls` None: the system's certificate authorities (or SSL_CERT_FILE)."""

    registry: Registry
    audit: Audit
    guard: Netguard
    credentials: CredentialSource
    key: Secret
    """The service key, with which tunnels greet on the Unix socket."""
    home: Path
    """The proxy's home: the authority that signs for intercepted hosts is kept in it."""
    upstream_tls: ssl.SSLContext | None = None


class EgressDoor:
    """An HTTP proxy on a TCP address, on a Unix socket that tunnels end at, or on both."""

    def __init__(self, house: House, address: Address | None, ca_pem: bytes, tasks: asyncio.TaskGroup) -> None:
        self._house = house
        self._tasks = tasks
        self._serving: set[asyncio.Task[None]] = set()
        self.address = address
        self.ca_pem = ca_pem
        """What a sandbox must trust, beside what it trusts already."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, parts: Parts, *, host: str | None = None, port: int = 0, uds: Path | None = None
    ) -> AsyncIterator[Self]:
        """Accept connections inside the block. Raises ConfigError if the address or the authority cannot be had."""
        authority = await to_thread.run_sync(partial(Authority.open, parts.home, now=datetime.now(UTC)))
        tls = await to_thread.run_sync(client_context, parts.upstream_tls)
        house = House(
            registry=parts.registry,
            guard=parts.guard,
            authority=authority,
            means=Means(parts.audit, parts.credentials, tls),
            key=parts.key,
            seats=Seats(),
        )
        loop = asyncio.get_running_loop()
        with ExitStack() as sockets:
            tcp = None if host is None else sockets.enter_context(await bind(host, port))
            local = None if uds is None else sockets.enter_context(unix_socket(uds))
            try:
                async with asyncio.TaskGroup() as tasks:
                    address = None if tcp is None or host is None else Address(host, tcp.getsockname()[1])
                    door = cls(house, address, authority.pem, tasks)
                    listening: list[asyncio.AbstractServer] = []
                    if tcp is not None:
                        listening.append(await loop.create_server(door._factory(may_greet=False), sock=tcp))
                    if local is not None:
                        listening.append(await loop.create_unix_server(door._factory(may_greet=True), sock=local))
                    try:
                        yield door
                    finally:
                        for server in listening:
                            server.close()
                        for task in door._serving:
                            task.cancel()
            except BaseExceptionGroup as group:
                # What the block raised leaves as it was: the group is an implementation detail.
                if len(group.exceptions) == 1:
                    raise group.exceptions[0] from None
                raise

    @property
    def port(self) -> int:
        """The TCP port, of a door that has one."""
        assert self.address is not None, "this door listens on a Unix socket only"
        return self.address.port

    @property
    def connections(self) -> int:
        return len(self._serving)

    def _factory(self, *, may_greet: bool) -> Callable[[], Socket]:
        def made(client: Socket) -> None:
            if len(self._serving) >= MOST:
                client.abort()
                return
            connection = Connection(self._house, client, may_greet=may_greet)
            task = self._tasks.create_task(self._serve(connection, client), name="egress-connection")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
            # Nobody waits for an answer any more.
            client.gone = task.cancel

        return lambda: Socket(made=made)

    async def _serve(self, connection: Connection, client: Socket) -> None:
        try:
            await connection.serve()
        except Exception:
            # The boundary of a connection: a fault in one must not end the door.
            logger.exception("a connection of the egress door failed")
        finally:
            client.gone = None
            client.close()
            if not client.lost.is_set():
                # A peer that reads nothing would keep what is still to be sent to it, and the socket, for ever.
                asyncio.get_running_loop().call_later(_FAREWELL_S, client.abort)
