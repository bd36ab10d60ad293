"""One connection of a sandbox to the door: who it is, what it asks for, and how far anybody looks into it."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from galley_vault_proxy.audit import AuditLine
from galley_vault_proxy.egress.ca import Authority
from galley_vault_proxy.egress.client_hello import AfterHello, BadHello, ClientHello, HelloReader, is_tls
from galley_vault_proxy.egress.gateway import Gateway, Means, credentials_of, named, reason_of
from galley_vault_proxy.egress.head import (
    BadRequest,
    Origin,
    absolute_target,
    check_connect_host,
    connect_target,
    grant_token,
    path_of,
)
from galley_vault_proxy.egress.incoming import HEAD_S, HeadTooSlow, Request, Requests, linger, refuse_unread
from galley_vault_proxy.egress.placeholders import is_for
from galley_vault_proxy.egress.stream import Idle, Socket, Stream, join
from galley_vault_proxy.egress.tls import Tls
from galley_vault_proxy.egress.upstream import HANDSHAKE_S, Place, dial, resolve
from galley_vault_proxy.errors import Denied, RateLimited, RequestError, Unavailable
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.grant.token import Grant
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.policy import Allow, Decision, Deny, HostAccess, decide
from galley_vault_proxy.preamble import Opening
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.telemetry import span

IDLE_S: Final = 900.0
PER_GRANT: Final = 128
"""Most connections of one grant at a time."""
# Some protocols let the server speak first; where those are allowed, the client is not waited for long.
_SILENT_S: Final = 1.0
_METHOD: Final = re.compile(rb"[A-Z]{3,20} (?:/|\*|https?:)", re.IGNORECASE)
_LONGEST_START: Final = 27
_ADDRESS: Final = re.compile(r"[0-9.]+|.*:.*")
_UNRECOGNISED_NAME: Final = 112
_ACCESS_DENIED: Final = 49


@dataclass(frozen=True, slots=True)
class House:
    """What every connection of the door shares."""

    registry: Registry
    guard: Netguard
    authority: Authority
    means: Means
    key: Secret
    seats: "Seats"


class Seats:
    """How many connections each grant has."""

    def __init__(self, most: int = PER_GRANT) -> None:
        self._most = most
        self._taken: dict[str, int] = {}

    @contextmanager
    def take(self, grant_id: str) -> Iterator[None]:
        """Raises RateLimited."""
        taken = self._taken.get(grant_id, 0)
        if taken >= self._most:
            raise RateLimited(
                f"this grant has {taken} connections through the proxy already", retry_after=1, error_code="too_many"
            )
        self._taken[grant_id] = taken + 1
        try:
            yield
        finally:
            self._taken[grant_id] -= 1
            if not self._taken[grant_id]:
                del self._taken[grant_id]


class Connection:
    def __init__(self, house: House, client: Socket, *, may_greet: bool) -> None:
        """`may_greet`: it comes over the Unix socket, where the first line may say which tunnel it is."""
        self._house = house
        self._client = client
        self._may_greet = may_greet
        self._tunnel: str | None = None
        self._gateway: Gateway | None = None
        self._is_told = False

    async def serve(self) -> None:
        """Until one side is gone. Raises nothing that the peer can bring about."""
        try:
            await self._serve()
        except (OSError, Idle):
            pass  # one of the two is gone, or says nothing any more
        finally:
            if self._gateway is not None:
                self._gateway.close()
            self._client.close()

    async def _serve(self) -> None:
        requests = None
        try:
            requests = Requests(self._client, await self._greeting() if self._may_greet else b"")
            wait_s = HEAD_S
            while (request := await requests.next(within_s=wait_s)) is not None:
                rest = await self._answer(request)
                if rest is None:
                    return
                requests.go_on(rest)
                wait_s = IDLE_S
        except RequestError as error:
            self._tell(None, None, error, time.monotonic(), (0, 0))
            await refuse_unread(self._client, error)
            await linger(self._client)

    async def _greeting(self) -> bytes:
        """Read which tunnel this is; return what came after that. Raises Unauthenticated."""
        opening = Opening(self._house.key)
        rest = b""
        try:
            async with asyncio.timeout(HEAD_S):
                while not opening.decided and (data := await self._client.read()):
                    rest = opening.feed(data)
        except TimeoutError:
            raise HeadTooSlow("the first line did not arrive in time", error_code="too_slow") from None
        self._tunnel = opening.tunnel
        return rest

    async def _answer(self, request: Request) -> bytes | None:
        """Return what belongs to the next request, or None when there is none."""
        began, before = time.monotonic(), self._passed()
        self._is_told = False
        grant: Grant | None = None
        failure: RequestError | None = None
        rest: bytes | None = None
        try:
            grant = await self._house.registry.lookup(grant_token(request.headers), self._tunnel)
            with self._house.seats.take(grant.id), span("egress", {"galley.session_id": grant.session_id}):
                async with self._house.registry.hold(grant):
                    rest = await self._carry_out(request, grant)
        except RequestError as error:
            failure = error
            rest = None
        finally:
            if not self._is_told:
                self._tell(request, grant, failure, began, before)
        if failure is not None:
            if request.answered:
                self._client.abort()
            else:
                await request.refuse(failure)
                await linger(self._client)
        return rest

    async def _carry_out(self, request: Request, grant: Grant) -> bytes | None:
        if request.method == "CONNECT":
            await self._connect(request, grant)
            return None
        return await self._plain(request, grant)

    # http:// through the proxy

    async def _plain(self, request: Request, grant: Grant) -> bytes | None:
        origin, target = absolute_target(request.target)
        kept = self._gateway
        if kept is None or kept.place.origin != origin:
            if kept is not None:
                kept.close()
                self._gateway = None
            _require(decide(grant, HostAccess(origin.host, origin.port, request.method, path_of(target))))
            place = await resolve(self._house.guard, origin)
            kept = self._gateway = Gateway(self._house.means, place, self._client)
        self._is_told = True
        return await kept.handle(request, target, grant)

    # CONNECT

    async def _connect(self, request: Request, grant: Grant) -> None:
        origin = connect_target(request.target)
        check_connect_host(request.headers, origin)
        if request.has_body:
            raise BadRequest("a CONNECT has no body", error_code="malformed_request")
        await self._house.means.audit.ready()
        is_read = _require(decide(grant, HostAccess(origin.host, origin.port))).inspect
        for credential in await credentials_of(self._house.means.credentials, grant):
            is_read = is_read or is_for(credential, origin.host)
        place = await resolve(self._house.guard, origin)
        upstream = await dial(place)
        try:
            rest = await request.accept()
            await self._tunnel_to(place, upstream, grant, rest, is_read=is_read)
        finally:
            upstream.abort()

    async def _tunnel_to(self, place: Place, upstream: Socket, grant: Grant, rest: bytes, *, is_read: bool) -> None:
        may_be_anything = grant.network == "unrestricted" and not is_read
        first = await self._first_bytes(rest, silent_s=_SILENT_S if may_be_anything else HEAD_S)
        if first and is_tls(first):
            check = partial(
                check_name, origin=place.origin, network_is_limited=grant.network == "limited", is_read=is_read
            )
            try:
                hello, said, rest = await self._hello(first)
                check(hello)
                if not is_read:
                    watched = AfterHello(hello, check)
                    await upstream.write(said + watched.feed(rest))
                    first = await self._handshake(upstream, watched)
            except RequestError as error:
                await self._client.write(alert(_UNRECOGNISED_NAME if isinstance(error, Denied) else _ACCESS_DENIED))
                await linger(self._client)
                raise
            if is_read:
                await self._intercept(place, upstream, grant, said + rest)
                return
        elif first and _METHOD.match(first):
            plain = Place(Origin("http", place.origin.host, place.origin.port), place.addresses)
            await self._requests(
                self._client, Gateway(self._house.means, plain, self._client, first=upstream), grant, first
            )
            return
        elif not may_be_anything:
            raise Denied("through this grant only TLS and HTTP are passed on to this host", reason="unknown_protocol")
        if first:
            await upstream.write(first)
        # From here on the two sockets end each other.
        self._client.gone = None
        await join(self._client, upstream, idle_s=IDLE_S)

    async def _first_bytes(self, first: bytes, *, silent_s: float) -> bytes:
        """As much as tells what the connection speaks; nothing when the client waits for the server."""
        try:
            async with asyncio.timeout(silent_s):
                first = first or await self._client.read()
            async with asyncio.timeout(silent_s):
                while first and not is_tls(first) and len(first) < _LONGEST_START and _may_be_http(first):
                    data = await self._client.read()
                    if not data:
                        break
                    first += data
        except TimeoutError:
            pass  # what came decides
        return first

    async def _hello(self, first: bytes) -> tuple[ClientHello, bytes, bytes]:
        """The hello, the bytes that it was, and those that were read with it. Raises BadHello, HeadTooSlow."""
        reader = HelloReader()
        whole = bytearray(first)
        hello = reader.feed(first)
        try:
            async with asyncio.timeout(HEAD_S):
                while hello is None:
                    data = await self._client.read()
                    if not data:
                        raise BadHello("the TLS hello is cut off")
                    whole += data
                    hello = reader.feed(data)
        except TimeoutError:
            raise HeadTooSlow("the TLS hello did not arrive in time", error_code="too_slow") from None
        end = len(whole) - reader.unread
        return hello, bytes(whole[:end]), bytes(whole[end:])

    async def _handshake(self, upstream: Socket, watched: AfterHello) -> bytes:
        """Pass on what both say until there can be no second hello; return what is still to be passed on."""

        async def back() -> None:
            while data := await upstream.read():
                await self._client.write(data)
            await self._client.end()

        out = b""
        try:
            async with asyncio.timeout(HANDSHAKE_S), asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(back(), name="egress-handshake")
                while not watched.done and (data := await self._client.read()):
                    out = watched.feed(data)
                    if not watched.done:
                        await upstream.write(out)
                # What it has read it has written; what it has not, stays for whoever reads next.
                answering.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        except TimeoutError:
            raise HeadTooSlow("the TLS handshake did not end in time", error_code="too_slow") from None
        return out if watched.done else b""

    async def _intercept(self, place: Place, upstream: Socket, grant: Grant, first: bytes) -> None:
        context = await self._house.authority.context(place.origin.host)
        tls = Tls(self._client, context, first=first)
        async with asyncio.timeout(HANDSHAKE_S):
            await tls.handshake()
        await self._requests(tls, Gateway(self._house.means, place, tls, first=upstream), grant, b"")

    async def _requests(self, stream: Stream, gateway: Gateway, grant: Grant, first: bytes) -> None:
        """Carry out one request after another, until one of them is the last."""
        self._gateway = gateway
        requests = Requests(stream, first)
        rest: bytes | None = b""
        while rest is not None:
            try:
                request = await requests.next(within_s=IDLE_S)
            except RequestError as error:
                await refuse_unread(stream, error)
                await linger(stream)
                raise
            if request is None:
                break
            try:
                rest = await gateway.handle(request, own_target(request), grant)
            except RequestError as error:
                if request.answered:
                    raise
                await request.refuse(error)
                break
            requests.go_on(rest or b"")
        await linger(stream)

    # The audit

    def _passed(self) -> tuple[int, int]:
        """Out of the sandbox, into it."""
        return self._client.received, self._client.sent

    def _tell(
        self,
        request: Request | None,
        grant: Grant | None,
        failure: RequestError | None,
        began: float,
        before: tuple[int, int],
    ) -> None:
        """One line for each connection to somewhere, and for each that did not come about."""
        up, down = (now - then for now, then in zip(self._passed(), before, strict=True))
        with suppress(Unavailable):  # nothing more is let through until lines are written again
            self._house.means.audit.record(
                AuditLine(
                    "egress.connect" if request is None or request.method == "CONNECT" else "egress.request",
                    "allow" if failure is None else "deny",
                    reason=None if failure is None else reason_of(failure),
                    who="nobody" if grant is None else "grant",
                    session_id=grant.session_id if grant else None,
                    grant_id=grant.id if grant else None,
                    thread_id=grant.thread_id if grant else None,
                    host=None if request is None else _asked(request),
                    method=None if request is None else request.method,
                    bytes=up + down,
                    bytes_up=up,
                    bytes_down=down,
                    duration_ms=round((time.monotonic() - began) * 1000, 3),
                )
            )


def check_name(hello: ClientHello, origin: Origin, *, network_is_limited: bool, is_read: bool) -> None:
    """Raise Denied unless TLS asks for the host that the connection was allowed for."""
    if hello.server_name is None:
        # To an address no name can be sent; where TLS ends here, Host says what is asked for.
        is_address = _ADDRESS.fullmatch(origin.host) is not None
        if network_is_limited and not (is_read and is_address):
            raise Denied("the TLS hello names no server, so nobody can tell where it leads", reason="sni_missing")
    elif hello.server_name != origin.host:
        raise Denied(f"the TLS hello does not name {origin.host}, which was asked for", reason="sni_mismatch")
    if hello.hides_name and network_is_limited and not is_read:
        raise Denied("the TLS hello may hide another server's name (ECH): switch that off", reason="sni_hidden")


def own_target(request: Request) -> str:
    """The target as an origin is asked for it. Raises BadRequest."""
    if request.target.startswith("/") or (request.target == "*" and request.method == "OPTIONS"):
        return request.target
    raise BadRequest("inside a connection to a host, ask for a path", error_code="malformed_request")


def alert(description: int) -> bytes:
    """A fatal alert, before any keys: what TLS has in place of an error message."""
    return bytes((21, 3, 1, 0, 2, 2, description))


def _require(decision: Decision) -> Allow:
    match decision:
        case Deny(reason=reason, message=message):
            raise Denied(message, reason=reason)
        case Allow():
            return decision


def _may_be_http(first: bytes) -> bool:
    method, space, rest = first.partition(b" ")
    return method.isalpha() and len(method) <= 20 and not (space and rest and not _METHOD.match(first))


def _asked(request: Request) -> str:
    try:
        return named(
            connect_target(request.target) if request.method == "CONNECT" else absolute_target(request.target)[0]
        )
    except RequestError:
        return "?"
