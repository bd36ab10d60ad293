"""Connections to the outside: dialled by the address that was judged, with the certificate checked by the name."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Final

import h11

from galley_vault_proxy.addresses import Address, refused
from galley_vault_proxy.egress.head import MAX_HEAD, Origin
from galley_vault_proxy.egress.stream import Socket, Stream
from galley_vault_proxy.egress.tls import Tls, TlsFailed
from galley_vault_proxy.errors import Unreachable
from galley_vault_proxy.netguard import CONNECT_S, Netguard, trusted

HANDSHAKE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Place:
    """A host that was resolved, once: every connection that this one of the sandbox leads to goes there."""

    origin: Origin
    addresses: tuple[Address, ...]

    @property
    def is_public(self) -> bool:
        return any(not refused(address, ()) for address in self.addresses)


async def resolve(guard: Netguard, origin: Origin) -> Place:
    """Raises AddressRefused, Unreachable."""
    return Place(origin, tuple(await guard.addresses(origin.host, origin.port)))


async def dial(place: Place, *, timeout_s: float = CONNECT_S) -> Socket:
    """A plain connection. Raises Unreachable."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    for index, address in enumerate(place.addresses):
        share = (deadline - loop.time()) / (len(place.addresses) - index)
        try:
            async with asyncio.timeout(max(share, 0)):
                _, socket = await loop.create_connection(Socket, str(address), place.origin.port)
                return socket
        except OSError:  # a timeout is one too
            continue
    raise Unreachable(
        f"{place.origin.host} port {place.origin.port} does not accept a connection", error_code="connect_failed"
    )


class Upstream:
    """A connection that requests go out on, one after another. `stream` is inside TLS where the scheme says so."""

    def __init__(self, socket: Socket, stream: Stream) -> None:
        self.socket = socket
        self.stream = stream
        self.connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    @classmethod
    async def over(cls, socket: Socket, origin: Origin, context: ssl.SSLContext) -> "Upstream":
        """Raises Unreachable; the socket is then closed."""
        if origin.scheme == "http":
            return cls(socket, socket)
        tls = Tls(socket, context, server_hostname=origin.host)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await tls.handshake()
        except BaseException as error:
            socket.abort()
            if isinstance(error, TlsFailed):
                message, code = f"the certificate or TLS of {origin.host} is not accepted: {error.reason}", "tls_failed"
            elif isinstance(error, OSError):
                message, code = f"{origin.host} broke off the TLS handshake", "tls_failed"
            else:
                raise
            raise Unreachable(message, error_code=code) from None
        return cls(socket, tls)

    @property
    def is_reusable(self) -> bool:
        """Whether another request may go out: all was said both ways, and the other side has not hung up."""
        done = self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE
        fresh = self.connection.our_state is h11.IDLE
        return (done or fresh) and not self.socket.at_end and not self.connection.trailing_data[0]

    def start_over(self) -> None:
        if self.connection.our_state is h11.DONE:
            self.connection.start_next_cycle()

    def close(self) -> None:
        self.socket.abort()


def client_context(given: ssl.SSLContext | None) -> ssl.SSLContext:
    """What upstream certificates are checked against: the system's authorities, or those in SSL_CERT_FILE."""
    context = given or trusted()
    context.set_alpn_protocols(["http/1.1"])
    return context
