"""One orphan service token per (session, vault): made at first use, renewed while its session lives, then revoked.

Vault's own policy holds it to its vault. Everything that a mint answers is compared with what was asked for.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from galley_vault_proxy.errors import ProxyError, SessionClosed, StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store.gate import Gate
from galley_vault_proxy.store.leases import Held, Leases
from galley_vault_proxy.store.names import vault_name
from galley_vault_proxy.store.proxy_identity import ProxyIdentity, fault_to_error
from galley_vault_proxy.store.vault_adapter import OWN_SESSION, Json, Request, text_of, whole_of
from galley_vault_proxy.store.vault_fault import Invalid, VaultFault
from galley_vault_proxy.turns import Turns

TTL_S: Final = 900
_RENEW_BELOW_S: Final = TTL_S / 2
_USELESS_S: Final = 3.0
_AT_ONCE: Final = 8

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, repr=False)
class SessionToken:
    """`ends`: monotonic seconds."""

    token: Secret
    accessor: str
    gate: Gate
    vault_id: str
    ends: float


class SessionTokens:
    def __init__(self, identity: ProxyIdentity, leases: Leases, mounts: VaultMounts) -> None:
        self._identity = identity
        self._leases = leases
        self._mounts = mounts
        self._tokens: dict[tuple[str, str], SessionToken] = {}
        self._turns = Turns()
        self._bound = asyncio.Semaphore(_AT_ONCE)

    async def get(self, gate: Gate, vault_id: str) -> SessionToken:
        """The living token of a session for a vault. Raises SessionClosed, StoreUnavailable, VaultFault."""
        found = self._living(gate, vault_id)
        if found is not None:
            return found
        async with self._turns.take(f"{gate.session_id} {vault_id}"):
            found = self._living(gate, vault_id)
            if found is None:
                found = await self._mint(gate, vault_id)
                self._tokens[gate.session_id, vault_id] = found
            return found

    async def lives(self, token: SessionToken) -> bool:
        """Ask Vault, with the proxy's own token. Its refusals say the same of a dead token and of a policy's no."""
        try:
            await self._identity.send(
                Request(
                    "post",
                    "auth/token/lookup-accessor",
                    "look a session's token up",
                    {"accessor": token.accessor},
                    session=token.gate.session_id,
                    again=True,
                )
            )
        except Invalid:
            return False
        return True

    def drop(self, token: SessionToken) -> None:
        """It is dead: the next `get` makes another."""
        key = (token.gate.session_id, token.vault_id)
        if self._tokens.get(key) is token:
            del self._tokens[key]

    async def revoke_session(self, session_id: str) -> None:
        """Revoke all that the state knows of the session, other processes' too. Raises StoreUnavailable."""
        for key in [key for key in self._tokens if key[0] == session_id]:
            del self._tokens[key]
        await self._revoke_all(await self._leases.doom_session(session_id), session_id)

    async def revoke_vault(self, vault_id: str) -> None:
        """Raises StoreUnavailable."""
        for key in [key for key in self._tokens if key[1] == vault_id]:
            del self._tokens[key]
        await self._revoke_all(await self._leases.doom_vault(vault_id), OWN_SESSION)

    async def revoke_doomed(self, accessors: Iterable[str]) -> None:
        """Go on where a revocation failed. Raises StoreUnavailable."""
        await self._revoke_all(accessors, OWN_SESSION)

    async def revoke_own(self) -> None:
        """The tokens are lost with this process: end them now rather than at their time."""
        accessors = [token.accessor for token in self._tokens.values()]
        self._tokens.clear()
        await self._revoke_all(accessors, OWN_SESSION)

    async def renew_due(self) -> None:
        """Renew what has come to half its life. One that cannot be renewed is left to end."""
        now = asyncio.get_running_loop().time()
        for key in [key for key, token in self._tokens.items() if token.ends <= now]:
            del self._tokens[key]
        due = [
            token
            for token in self._tokens.values()
            # The proxy's own readings are rare: their tokens may end.
            if token.ends - now < _RENEW_BELOW_S and token.gate.session_id != OWN_SESSION
        ]
        async with asyncio.TaskGroup() as tasks:
            for token in due:
                tasks.create_task(self._renew(token), name=f"renew-{token.gate.session_id}")

    def _living(self, gate: Gate, vault_id: str) -> SessionToken | None:
        found = self._tokens.get((gate.session_id, vault_id))
        if found is None or found.gate is not gate or found.ends - asyncio.get_running_loop().time() < _USELESS_S:
            return None
        return found

    async def _mint(self, gate: Gate, vault_id: str) -> SessionToken:
        ttl_s = _ttl_s(gate)
        name = vault_name(vault_id)
        began = asyncio.get_running_loop().time()
        answer = await self._identity.send(
            Request(
                "post",
                f"auth/token/create/{self._mounts.token_role}",
                "make a session's token",
                {"entity_alias": name, "meta": {"session": gate.session_id, "vault": name}, "ttl": f"{ttl_s}s"},
                session=gate.session_id,
            )
        )
        auth = answer.part("auth")
        token = SessionToken(
            Secret(text_of(auth, "client_token")),
            text_of(auth, "accessor"),
            gate,
            vault_id,
            began + whole_of(auth, "lease_duration"),
        )
        try:
            await self._accept(token, auth, ttl_s)
        except ProxyError:
            await self._revoke_quietly(token.accessor, gate.session_id)
            raise
        return token

    async def _accept(self, token: SessionToken, auth: Json, ttl_s: int) -> None:
        """Raises StoreUnavailable when Vault gave something else than was asked for, SessionClosed when too late."""
        wrong = mint_fault(auth, self._mounts)
        if wrong is not None:
            raise StoreUnavailable(
                f"Vault made a session token that {wrong}: it was revoked; run `galley-vault-proxy bootstrap` to set "
                f"the token role {self._mounts.token_role} right"
            )
        entity_id = text_of(auth, "entity_id")
        held = Held(token.accessor, token.gate.session_id, token.vault_id)
        known = await self._leases.add(held, entity_id, datetime.now(UTC).timestamp() + ttl_s)
        if known != entity_id:
            raise StoreUnavailable(
                f"Vault has another identity for {token.vault_id} than before: its token was revoked, and no secret of "
                "it is read; `galley-vault-proxy reconcile` tells what became of the first"
            )
        if token.gate.closing:
            raise SessionClosed(f"{token.gate.session_id} is closed: no secret is read for it")

    async def _renew(self, token: SessionToken) -> None:
        rest_s = _rest_s(token.gate)
        now = asyncio.get_running_loop().time()
        if token.gate.closing or rest_s <= token.ends - now:
            return  # it lasts to the session's end
        async with self._bound:
            try:
                answer = await self._identity.send(
                    Request(
                        "post",
                        "auth/token/renew-accessor",
                        "renew a session's token",
                        {"accessor": token.accessor, "increment": min(TTL_S, rest_s)},
                        session=token.gate.session_id,
                        again=True,
                        telling=False,  # with its role deleted, a token's renewal is a 500
                    )
                )
                lasts_s = whole_of(answer.part("auth"), "lease_duration")
                token.ends = now + lasts_s
                await self._leases.renewed(token.accessor, datetime.now(UTC).timestamp() + lasts_s)
            except Invalid:
                self.drop(token)  # dead, or at the end of its 24 hours: the next use makes another
            except (VaultFault, StoreUnavailable) as error:
                logger.warning("a token of %s could not be renewed: %s", token.gate.session_id, error)

    async def _revoke_all(self, accessors: Iterable[str], session_id: str) -> None:
        failures: list[StoreUnavailable] = []

        async def one(accessor: str) -> None:
            async with self._bound:
                try:
                    await self._revoke(accessor, session_id)
                except StoreUnavailable as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for accessor in accessors:
                tasks.create_task(one(accessor), name="revoke-token")
        if failures:
            raise StoreUnavailable(f"{len(failures)} tokens of {session_id} are not revoked yet: {failures[0].message}")

    async def _revoke(self, accessor: str, session_id: str) -> None:
        try:
            await self._identity.send(
                Request(
                    "post",
                    "auth/token/revoke-accessor",
                    "revoke a session's token",
                    {"accessor": accessor},
                    session=session_id,
                    again=True,
                )
            )
        except VaultFault as fault:
            # Of a dead token OpenBao says nothing here, and others this.
            if not isinstance(fault, Invalid) or not fault.says("invalid accessor"):
                raise fault_to_error(fault) from None
        await self._leases.remove(accessor)

    async def _revoke_quietly(self, accessor: str, session_id: str) -> None:
        with suppress(StoreUnavailable):
            await self._leases.doom(accessor)
        try:
            await self._revoke(accessor, session_id)
        except StoreUnavailable as error:
            logger.error("a token of %s, not to be used, is not revoked yet: %s", session_id, error)


def mint_fault(auth: Json, mounts: VaultMounts) -> str | None:
    """What is wrong with a token that Vault made, or None. Any of it means more rights than one vault's."""
    if not auth.get("entity_id"):
        return "has no identity"
    if auth.get("policies") != [mounts.policy]:
        return "has other policies than the one"
    if auth.get("identity_policies"):
        return "gets policies from its identity"
    if auth.get("orphan") is not True:
        return "is not an orphan"
    if auth.get("token_type") != "service":
        return "is not a service token"
    return None


def _rest_s(gate: Gate) -> int:
    return int((gate.expires_at - datetime.now(UTC)).total_seconds())


def _ttl_s(gate: Gate) -> int:
    rest_s = _rest_s(gate)
    if gate.closing or rest_s < 1:
        raise SessionClosed(f"{gate.session_id} is closed: no secret is read for it")
    return min(TTL_S, rest_s)
