"""The requests of one connection to one origin, each decided on by itself, carried out, and told to the audit."""

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from galley_vault_proxy.audit import Audit, AuditLine
from galley_vault_proxy.credentials.port import CredentialSource, EnvCredential
from galley_vault_proxy.egress.forward import Forward, NothingSaid, Outcome, relay_websocket
from galley_vault_proxy.egress.head import BadRequest, Origin, check_host, path_of
from galley_vault_proxy.egress.incoming import Request
from galley_vault_proxy.egress.placeholders import PlaceholderRefused, Placeholders
from galley_vault_proxy.egress.stream import Socket, Stream
from galley_vault_proxy.egress.upstream import Place, Upstream, dial
from galley_vault_proxy.errors import Denied, ProxyError, RequestError
from galley_vault_proxy.grant.token import Grant
from galley_vault_proxy.policy import Allow, Deny, HostAccess, decide

_REFRESH_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Means:
    """What every gateway of the door shares."""

    audit: Audit
    credentials: CredentialSource
    tls: ssl.SSLContext


class Gateway:
    """Between one connection of a sandbox and one place. `client`: its requests' stream, inside TLS or not."""

    def __init__(self, means: Means, place: Place, client: Stream, *, first: Socket | None = None) -> None:
        """`first`: a connection to the place that is open already."""
        self._means = means
        self.place = place
        self._client = client
        self._first = first
        self._upstream: Upstream | None = None
        self._placeholders: tuple[object, Placeholders] | None = None
        self._passed = 0  # bytes of connections to the place that are closed

    @property
    def bytes_passed(self) -> int:
        """Both ways, on the side of the place."""
        sockets = [self._first, self._upstream.socket if self._upstream else None]
        return self._passed + sum(socket.sent + socket.received for socket in sockets if socket)

    def close(self) -> None:
        if self._first is not None:
            self._first.abort()
        self._drop()

    async def handle(self, request: Request, target: str, grant: Grant) -> bytes | None:
        """Carry out a request; return what belongs to the next one, or None when there can be none.

        Raises RequestError, which the caller answers if nothing was yet, and OSError; both end the connection.
        """
        began, before = time.monotonic(), self.bytes_passed
        try:
            outcome, used = await self._carry_out(request, target, grant)
        except RequestError as error:
            self._tell(request, grant, error, before, began)
            raise
        self._tell(request, grant, None, before, began)
        if outcome.status == 401:
            await self._renew(used)
        return None if outcome.status == 101 else request.rest()

    async def _carry_out(self, request: Request, target: str, grant: Grant) -> tuple[Outcome, Sequence[EnvCredential]]:
        await self._means.audit.ready()
        self._decide(request, target, grant)
        placeholders = await self._seen_from_here(grant)
        while True:
            upstream, is_used = await self._connected()
            forward = Forward(request, target, self.place.origin, upstream, placeholders)
            try:
                outcome = await forward.run()
            except NothingSaid:
                # It was closing the idle connection as we took it up: nothing of it was heard, and nothing is lost.
                self._drop()
                if is_used and not request.has_body and not request.answered:
                    continue
                raise
            except BaseException:
                self._drop()
                raise
            finally:
                used = tuple(placeholders.used.values())
                self._tell_use(grant, used)
            if outcome.status == 101:
                try:
                    await relay_websocket(self._client, upstream, outcome, placeholders)
                finally:
                    self._drop()
            return outcome, used

    def _decide(self, request: Request, target: str, grant: Grant) -> None:
        origin = self.place.origin
        if request.method in ("CONNECT", "TRACE"):
            raise BadRequest(f"{request.method} is not passed on", error_code="method_refused")
        check_host(request.headers, origin)
        match decide(grant, HostAccess(origin.host, origin.port, request.method, path_of(target))):
            case Deny(reason=reason, message=message):
                raise Denied(message, reason=reason)
            case Allow():
                return

    async def _seen_from_here(self, grant: Grant) -> Placeholders:
        """Raises what the secret store raises: without an answer nothing is let through."""
        found = await credentials_of(self._means.credentials, grant)
        key = [(one.credential_id, one.version, one.placeholder, one.hosts, one.locations) for one in found]
        if self._placeholders is None or self._placeholders[0] != key:
            in_the_clear = self.place.origin.scheme == "http" and self.place.is_public
            self._placeholders = (key, Placeholders(found, self.place.origin.host, in_the_clear=in_the_clear))
        placeholders = self._placeholders[1]
        placeholders.used.clear()
        return placeholders

    async def _connected(self) -> tuple[Upstream, bool]:
        """A connection that a request may go out on, and whether one went out on it before."""
        if self._upstream is not None:
            if self._upstream.is_reusable:
                self._upstream.start_over()
                return self._upstream, True
            self._drop()
        socket, self._first = self._first, None
        is_old = socket is not None
        if socket is None or socket.at_end:
            socket, is_old = await dial(self.place), False
        self._upstream = await Upstream.over(socket, self.place.origin, self._means.tls)
        return self._upstream, is_old

    def _drop(self) -> None:
        if self._upstream is not None:
            self._passed += self._upstream.socket.sent + self._upstream.socket.received
            self._upstream.close()
            self._upstream = None

    async def _renew(self, used: Sequence[EnvCredential]) -> None:
        """The host refused what it was sent; the next request should not be sent the same."""
        for credential in used:
            try:
                async with asyncio.timeout(_REFRESH_S):
                    await self._means.credentials.refresh(credential.credential_id, credential.version)
            except (ProxyError, TimeoutError) as error:
                logger.warning("credential %s was refused and cannot be renewed: %s", credential.credential_id, error)

    def _tell(self, request: Request, grant: Grant, error: RequestError | None, before: int, began: float) -> None:
        credential = error.credential if isinstance(error, PlaceholderRefused) else None
        self._means.audit.record(
            AuditLine(
                "egress.request",
                "allow" if error is None else "deny",
                reason=None if error is None else reason_of(error),
                session_id=grant.session_id,
                grant_id=grant.id,
                thread_id=grant.thread_id,
                host=named(self.place.origin),
                method=request.method,
                credential_id=credential.credential_id if credential else None,
                credential_version=credential.version if credential else None,
                bytes=self.bytes_passed - before,
                duration_ms=round((time.monotonic() - began) * 1000, 3),
            )
        )

    def _tell_use(self, grant: Grant, used: Sequence[EnvCredential]) -> None:
        for credential in used:
            self._means.audit.record(
                AuditLine(
                    "credential.use",
                    "allow",
                    session_id=grant.session_id,
                    grant_id=grant.id,
                    thread_id=grant.thread_id,
                    host=named(self.place.origin),
                    credential_id=credential.credential_id,
                    credential_version=credential.version,
                )
            )


async def credentials_of(source: CredentialSource, grant: Grant) -> Sequence[EnvCredential]:
    return await source.for_host(grant.session_id, grant.vault_ids) if grant.vault_ids else ()


def reason_of(error: RequestError) -> str:
    return error.error_code or error.type


def named(origin: Origin) -> str:
    return f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
