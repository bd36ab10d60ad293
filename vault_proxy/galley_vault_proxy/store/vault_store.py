"""The secret store over HashiCorp Vault or OpenBao."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, Self, TypeVar

from galley_vault_proxy.errors import (
    AccessRefused,
    InvalidRequest,
    ProxyError,
    SecretMissing,
    SessionClosed,
    StoreUnavailable,
    VersionConflict,
)
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultSettings
from galley_vault_proxy.state import State
from galley_vault_proxy.store import dynamic, kv
from galley_vault_proxy.store.cache import Cache
from galley_vault_proxy.store.errands import Errands
from galley_vault_proxy.store.gate import Gate
from galley_vault_proxy.store.leases import Leases
from galley_vault_proxy.store.names import check_ids, check_session, vault_name
from galley_vault_proxy.store.port import Engine, Lease, Material, SecretRef
from galley_vault_proxy.store.proxy_identity import ProxyIdentity, fault_to_error
from galley_vault_proxy.store.session_tokens import SessionToken, SessionTokens
from galley_vault_proxy.store.vault_adapter import OWN_SESSION, Answer, Request, text_of
from galley_vault_proxy.store.vault_client import VaultClient
from galley_vault_proxy.store.vault_fault import Down, Invalid, Missing, Refused, VaultFault
from galley_vault_proxy.turns import Turns

T = TypeVar("T")

_LEAVING_S: Final = 2.0
_FOLLOW_S: Final = 0.4
_TEND_S: Final = 5.0
_ALWAYS: Final = datetime.max.replace(tzinfo=UTC) - timedelta(days=2)

logger = logging.getLogger(__name__)


class VaultStore:
    """See `SecretStore`. Fails closed; what Vault's troubles cut off goes on by itself when they end."""

    def __init__(
        self,
        settings: VaultSettings,
        client: VaultClient,
        identity: ProxyIdentity,
        leases: Leases,
        errands: Errands,
        cache_ttl_s: float,
        drain_s: float,
    ) -> None:
        self._mounts = settings.mounts
        self._timeout_s = settings.timeout_s
        self._client = client
        self._identity = identity
        self._leases = leases
        self._errands = errands
        self._tokens = SessionTokens(identity, leases, settings.mounts)
        self._cache = Cache(cache_ttl_s)
        self._cache_ttl_s = cache_ttl_s
        self._drain_s = drain_s
        self._gates: dict[str, Gate] = {}
        self._reading = Turns()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: VaultSettings, state: State, *, cache_ttl_s: float = 30.0, drain_s: float = 5.0
    ) -> AsyncIterator[Self]:
        """`state` must have been opened with `leases.SCHEMA`. Vault may be away: it is asked at the first need.

        `drain_s`: how long the end of a session waits for calls in flight.
        """
        leases = Leases(state)
        async with (
            VaultClient.open(settings) as client,
            ProxyIdentity.open(client, settings) as identity,
            Errands.open() as errands,
            asyncio.TaskGroup() as tasks,
        ):
            store = cls(settings, client, identity, leases, errands, cache_ttl_s, drain_s)
            work = [
                tasks.create_task(store._follow(), name="vault-follow"),
                tasks.create_task(store._tend(), name="vault-tend"),
            ]
            try:
                yield store
            finally:
                for task in work:
                    task.cancel()
                await store._leave()

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, expected: int | None) -> int:
        check_ids(ref.vault_id, ref.credential_id)
        request = kv.write(self._mounts, ref, fields, expected)
        # An answer that nobody waits for counts too: what others have in their caches is old.
        return await self._errands.run(self._write(ref, request), name="vault-write")

    async def read(self, session_id: str, ref: SecretRef, *, fresh: bool = False) -> Material:
        check_ids(ref.vault_id, ref.credential_id)
        gate = self._gate(session_id, ref.vault_id)
        if not fresh:
            found = self._cache.get(session_id, ref, asyncio.get_running_loop().time())
            if found is not None:
                return found
        if fresh:
            return await self._errands.run(self._read(gate, ref), name="vault-read")
        # Whoever asks meanwhile gets this answer.
        async with self._reading.take(f"{session_id} {ref.vault_id} {ref.credential_id}"):
            found = self._cache.get(session_id, ref, asyncio.get_running_loop().time())
            if found is not None:
                return found
            return await self._errands.run(self._read(gate, ref), name="vault-read")

    async def read_own(self, ref: SecretRef) -> Material:
        # The proxy's own token cannot read. It makes itself one that can read this vault, like any session's.
        check_ids(ref.vault_id, ref.credential_id)
        return await self._errands.run(self._read(self._own_gate(ref.vault_id), ref), name="vault-read-own")

    async def purge(self, ref: SecretRef) -> None:
        check_ids(ref.vault_id, ref.credential_id)
        await self._errands.run(self._purge(ref), name="vault-purge")

    async def purge_vault(self, vault_id: str) -> None:
        vault_name(vault_id)
        await self._errands.run(self._purge_vault(vault_id), name="vault-purge-vault")

    async def open_session(self, session_id: str, vault_ids: Collection[str], expires_at: datetime) -> None:
        if check_session(session_id) == OWN_SESSION:
            raise InvalidRequest(f"session_id: {OWN_SESSION} is the proxy's own")
        for vault_id in vault_ids:
            vault_name(vault_id)
        gate = self._gates.get(session_id)
        if gate is None or gate.closing:
            self._gates[session_id] = Gate(session_id, frozenset(vault_ids), expires_at)
        else:
            gate.vault_ids, gate.expires_at = frozenset(vault_ids), expires_at

    async def close_session(self, session_id: str) -> None:
        gate = self._gates.get(session_id)
        if gate is not None:
            gate.closing = True  # now, and not when the errand begins
        self._cache.forget_session(session_id)
        await self._errands.run(self._close(session_id, gate), name="vault-close")

    async def issue(
        self, session_id: str, vault_id: str, engine: Engine, role: str, params: Mapping[str, str]
    ) -> Lease:
        request = dynamic.issue(self._mounts, session_id, vault_name(vault_id), engine, role, params)
        gate = self._gate(session_id, vault_id)
        try:
            # Vault is waited for as long as it may take, by the errand; the caller is not kept that long.
            async with asyncio.timeout(self._timeout_s):
                return await self._errands.run(
                    self._issue(gate, vault_id, engine, request), name="vault-issue", unclaimed=self._give_back
                )
        except TimeoutError:
            raise StoreUnavailable(
                "Vault is slow: nothing was issued in time, and what still arrives is revoked"
            ) from None

    async def seal(self, vault_id: str, plaintext: bytes) -> str:
        vault_name(vault_id)
        with _as_errors():
            answer = await self._identity.send(kv.encrypt(self._mounts, vault_id, plaintext))
            return text_of(answer.part("data"), "ciphertext")

    async def unseal(self, vault_id: str, sealed: str) -> bytes:
        vault_name(vault_id)
        try:
            answer = await self._identity.send(kv.decrypt(self._mounts, vault_id, sealed))
        except Invalid:
            raise InvalidRequest("this was not sealed here, or was sealed for another vault") from None
        except VaultFault as fault:
            raise fault_to_error(fault) from None
        return base64.b64decode(text_of(answer.part("data"), "plaintext"))

    async def wrap(self, session_id: str, ref: SecretRef, *, ttl_s: int) -> Secret:
        check_ids(ref.vault_id, ref.credential_id)
        gate = self._gate(session_id, ref.vault_id)
        request = replace(kv.read(self._mounts, ref), wrap_ttl_s=ttl_s, again=False)

        async def work() -> Secret:
            with _as_errors(ref), gate.passing():
                answer, _ = await self._as_session(gate, ref.vault_id, request)
                return Secret(text_of(answer.part("wrap_info"), "token"))

        return await self._errands.run(work(), name="vault-wrap")

    async def unwrap(self, ref: SecretRef, token: Secret) -> Material:
        check_ids(ref.vault_id, ref.credential_id)
        refused = AccessRefused("this wrapping token is spent, has expired, or was not made for this credential")
        if not kv.is_token(token):
            raise refused
        try:
            answer = await self._client.send(kv.wrapping_lookup(token))
            # Looking up does not spend it. A token that wraps something else is not ours to open.
            if text_of(answer.part("data"), "creation_path") != kv.read(self._mounts, ref).path:
                raise refused
            return kv.material(await self._client.send(kv.unwrapping(token)))
        except (Invalid, Refused, Missing):
            raise refused from None
        except VaultFault as fault:
            raise fault_to_error(fault) from None

    async def ready(self) -> None:
        # With a full audit disk health says 200 and every request fails; sealed, a token cannot be looked up.
        try:
            unwell = kv.unwell(await self._client.probe(kv.HEALTH, tells=False))
            if unwell is not None:
                raise StoreUnavailable(unwell)
            await self._identity.check()
        except VaultFault as fault:
            raise fault_to_error(fault) from None

    def _gate(self, session_id: str, vault_id: str) -> Gate:
        gate = self._gates.get(session_id)
        if gate is None:
            raise SessionClosed(f"{session_id} is closed: no secret is read for it")
        gate.check(vault_id, datetime.now(UTC))
        return gate

    def _own_gate(self, vault_id: str) -> Gate:
        gate = self._gates.setdefault(OWN_SESSION, Gate(OWN_SESSION, frozenset(), _ALWAYS))
        gate.vault_ids |= {vault_id}
        return gate

    async def _as_session(self, gate: Gate, vault_id: str, request: Request) -> tuple[Answer, SessionToken]:
        """Send with the session's own token for the vault. Raises VaultFault but Refused, and ProxyError."""
        token = await self._tokens.get(gate, vault_id)
        try:
            return await self._client.send(_by(request, token)), token
        except Refused:
            if await self._tokens.lives(token):
                raise _policy_says_no(vault_id) from None
        # Expired, or revoked behind our back: another one, once.
        self._tokens.drop(token)
        token = await self._tokens.get(gate, vault_id)
        try:
            return await self._client.send(_by(request, token)), token
        except Refused:
            raise _policy_says_no(vault_id) from None

    async def _read(self, gate: Gate, ref: SecretRef) -> Material:
        ticket = self._cache.ticket()
        with _as_errors(ref), gate.passing():
            answer, _ = await self._as_session(gate, ref.vault_id, kv.read(self._mounts, ref))
            material = kv.material(answer)
        # What has been closed meanwhile, or taken from the session, must not be found in the cache.
        gate.check(ref.vault_id, datetime.now(UTC))
        if gate.session_id != OWN_SESSION:
            self._cache.put(ticket, gate.session_id, ref, material, asyncio.get_running_loop().time())
        return material

    async def _write(self, ref: SecretRef, request: Request) -> int:
        try:
            version = kv.written(await self._identity.send(request))
        except Invalid as fault:
            if fault.says("check-and-set"):
                raise VersionConflict(f"{ref.credential_id} has another version by now: read it again") from None
            raise fault_to_error(fault) from None
        except VaultFault as fault:
            if isinstance(fault, Down) and fault.done:
                await self._changed(ref)  # it may have been written all the same
            raise fault_to_error(fault) from None
        await self._changed(ref)
        return version

    async def _purge(self, ref: SecretRef) -> None:
        with _as_errors():
            await self._identity.send(kv.purge(self._mounts, ref))
        await self._changed(ref)

    async def _purge_vault(self, vault_id: str) -> None:
        # First whoever could still read.
        await self._tokens.revoke_vault(vault_id)
        self._cache.forget_vault(vault_id)
        with _as_errors():
            try:
                answer = await self._identity.send(kv.names(self._mounts, vault_id))
            except Missing:
                credential_ids: list[str] = []
            else:
                credential_ids = kv.credential_ids(answer)
        for credential_id in credential_ids:
            await self._purge(SecretRef(vault_id, credential_id))
        await self._leases.retire(vault_id)

    async def _changed(self, ref: SecretRef) -> None:
        self._cache.forget(ref)
        try:
            await self._leases.wrote(ref, datetime.now(UTC).timestamp())
        except StoreUnavailable as error:
            # It is written; the other processes see it when their caches end.
            logger.warning("other processes are not told of a new version of %s: %s", ref.credential_id, error)

    async def _close(self, session_id: str, gate: Gate | None) -> None:
        if gate is not None:
            if not await gate.close(timeout_s=self._drain_s):
                logger.warning("%s: calls are still on their way; what they bring will be revoked", session_id)
            if self._gates.get(session_id) is gate:
                del self._gates[session_id]
        self._cache.forget_session(session_id)
        await self._tokens.revoke_session(session_id)

    async def _issue(self, gate: Gate, vault_id: str, engine: Engine, request: Request) -> Lease:
        with _as_errors(), gate.passing():
            try:
                answer, token = await self._as_session(gate, vault_id, request)
            except Invalid as fault:
                if not fault.says("unknown role"):
                    raise
                raise SecretMissing(f"Vault has no {engine} role {request.path.rsplit('/', 1)[-1]}") from None
            lease = dynamic.lease(engine, answer, datetime.now(UTC))
            if not gate.closing and await self._still(token):
                return lease
        # Its token is being revoked, or has been: the lease may outlive it.
        await self._give_back(lease)
        raise SessionClosed(f"{gate.session_id} is closed: what was issued for it was revoked")

    async def _give_back(self, lease: Lease) -> None:
        """Revoke what nobody will use, by its id. What cannot be revoked now is revoked later."""
        with suppress(StoreUnavailable):
            await self._leases.add_late_lease(lease.id, lease.expires_at.timestamp())
        await self._revoke_lease(lease.id)

    async def _still(self, token: SessionToken) -> bool:
        """Whether no process has set out to revoke it. What is not known is no."""
        try:
            return await self._leases.lives(token.accessor)
        except StoreUnavailable:
            return False

    async def _revoke_lease(self, lease_id: str) -> None:
        with _as_errors():
            await self._identity.send(dynamic.revoke(lease_id))
        await self._leases.remove_late_lease(lease_id)

    async def _follow(self) -> None:
        """Learn what other processes on this state wrote."""
        version, number = -1, 0
        while True:
            try:
                seen = await self._leases.version()
                if version == -1:
                    number = await self._leases.last_write()
                elif seen != version:
                    number, written = await self._leases.writes_after(number)
                    for ref in written:
                        self._cache.forget(ref)
                version = seen
            except StoreUnavailable as error:
                logger.error("other processes' writes cannot be seen: %s", error)
            await asyncio.sleep(_FOLLOW_S)

    async def _tend(self) -> None:
        """Renew what is due, and go on with what could not be revoked."""
        while True:
            await asyncio.sleep(_TEND_S)
            try:
                await self._tokens.renew_due()
                left = await self._leases.leftovers()
                for lease_id in left.lease_ids:
                    await self._revoke_lease(lease_id)
                await self._tokens.revoke_doomed(left.accessors)
                now = datetime.now(UTC).timestamp()
                await self._leases.sweep(now, now - 2 * self._cache_ttl_s - 60)
            except ProxyError as error:
                logger.warning("tending what Vault holds for us: %s", error)

    async def _leave(self) -> None:
        """End our tokens, as far as a moment suffices: they end by themselves in a quarter of an hour."""
        for gate in self._gates.values():
            gate.closing = True
        try:
            async with asyncio.timeout(_LEAVING_S):
                await self._tokens.revoke_own()
        except (TimeoutError, StoreUnavailable) as error:
            reason = error.message if isinstance(error, StoreUnavailable) else "Vault took too long"
            logger.warning("not all session tokens were revoked; they end within 15 minutes: %s", reason)


def _by(request: Request, token: SessionToken) -> Request:
    return replace(request, token=token.token, session=token.gate.session_id)


def _policy_says_no(vault_id: str) -> AccessRefused:
    return AccessRefused(f"Vault's policy refuses the session's token for {vault_id}: run `galley-vault-proxy doctor`")


@contextmanager
def _as_errors(ref: SecretRef | None = None) -> Iterator[None]:
    """Vault's faults as the port's errors; `ref`: what is missing when nothing is there."""
    try:
        yield
    except Missing as fault:
        if ref is None:
            raise fault_to_error(fault) from None
        raise SecretMissing(f"{ref.credential_id} has no secret: it was never written, or was purged") from None
    except VaultFault as fault:
        raise fault_to_error(fault) from None
