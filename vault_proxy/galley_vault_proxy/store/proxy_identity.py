"""The proxy's own token at Vault: logging in by each method, renewing, logging in again."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, assert_never

from galley_vault_proxy.errors import StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import (
    AppRoleAuth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultSettings,
)
from galley_vault_proxy.store.vault_adapter import Answer, Json, Request, text_of, whole_of
from galley_vault_proxy.store.vault_client import VaultClient
from galley_vault_proxy.store.vault_fault import Down, Invalid, Missing, Refused, VaultFault

_PRINTABLE: Final = re.compile(r"[!-~]{1,16384}")
_MOST_BYTES: Final = 1 << 16
_RETRY_S: Final = 5.0
_LOOK_AGAIN_S: Final = 60.0
_LEAST_S: Final = 1.0
_UNUSED_S: Final = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Own:
    """`ends`: monotonic seconds, None for a token without end."""

    token: Secret
    ends: float | None
    ttl_s: int
    renewable: bool


class ProxyIdentity:
    """Hands out the proxy's own token. Vault may be away at the start: logging in happens at the first need."""

    def __init__(self, client: VaultClient, settings: VaultSettings) -> None:
        self._client = client
        self._settings = settings
        self._own: _Own | None = None
        self._logging_in = asyncio.Lock()
        self._changed = asyncio.Event()
        self._unwrapped: tuple[str, Secret] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, client: VaultClient, settings: VaultSettings) -> AsyncIterator[Self]:
        identity = cls(client, settings)
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(identity._keep(), name="vault-own-token")
            try:
                yield identity
            finally:
                keeping.cancel()

    async def send(self, request: Request) -> Answer:
        """Send as the proxy. A dead token is replaced once.

        Raises Invalid, Missing or Down, and StoreUnavailable when Vault lets the proxy in but not do this.
        """
        own = await self._token()
        try:
            return await self._client.send(_with(request, own.token))
        except Refused:
            if await self._lives(own.token):
                raise _unprivileged(request) from None
        own = await self._token(instead_of=own.token)
        try:
            return await self._client.send(_with(request, own.token))
        except Refused:
            raise _unprivileged(request) from None

    async def check(self) -> None:
        """Ask Vault once about the own token, past the circuit breaker. Raises StoreUnavailable, Down."""
        own = await self._token()
        try:
            await self._client.probe(_lookup_self(own.token))
        except Refused:
            await self._token(instead_of=own.token)

    async def _token(self, *, instead_of: Secret | None = None) -> _Own:
        own = self._own
        if own is not None and own.token is not instead_of and not _over(own):
            return own
        async with self._logging_in:
            own = self._own
            if own is None or own.token is instead_of or _over(own):
                own = self._own = await self._login()
                self._changed.set()
            return own

    async def _lives(self, token: Secret) -> bool:
        try:
            await self._client.send(_lookup_self(token))
        except Refused:
            return False
        except Invalid:
            return False
        return True

    async def _login(self) -> _Own:
        match self._settings.auth:
            case TokenAuth(token=token):
                return await self._given(token, "VAULT_TOKEN")
            case TokenFileAuth(path=path):
                return await self._given(await _kept(path, "GALLEY_VAULT_TOKEN_FILE"), "GALLEY_VAULT_TOKEN_FILE")
            case AppRoleAuth() as approle:
                secret_id = await self._secret_id(approle)
                body: Json = {"role_id": await _role_id(approle), "secret_id": secret_id.reveal()}
                return await self._login_with(body, "the secret id is wrong, used up or expired: give a new one")
            case JwtAuth(role=role, path=path) | KubernetesAuth(role=role, path=path):
                jwt = await _kept(path, "GALLEY_VAULT_JWT_FILE")
                return await self._login_with({"role": role, "jwt": jwt.reveal()}, "the signed token is not accepted")
            case _:
                assert_never(self._settings.auth)

    async def _given(self, token: Secret, setting: str) -> _Own:
        try:
            answer = await self._client.send(_lookup_self(token))
        except (Refused, Invalid):
            raise StoreUnavailable(f"Vault knows the token of {setting} no more: put a living one there") from None
        data = answer.part("data")
        return _own(token, whole_of(data, "ttl"), data.get("renewable") is True)

    async def _login_with(self, body: Json, hint: str) -> _Own:
        mount = self._settings.auth_mount
        request = Request("post", f"auth/{mount}/login", "log the proxy in", body, again=not self._spends())
        try:
            answer = await self._client.send(request)
        except (Invalid, Refused, Missing):
            self._unwrapped = None
            raise StoreUnavailable(f"Vault does not let the proxy in at auth/{mount}: {hint}") from None
        auth = answer.part("auth")
        token = Secret(text_of(auth, "client_token"))
        return _own(token, whole_of(auth, "lease_duration"), auth.get("renewable") is True)

    def _spends(self) -> bool:
        # A secret id may be good for one login only.
        return isinstance(self._settings.auth, AppRoleAuth)

    async def _secret_id(self, approle: AppRoleAuth) -> Secret:
        if approle.secret_id_file is not None:
            given = await _kept(approle.secret_id_file, "GALLEY_VAULT_SECRET_ID_FILE")
        else:
            assert approle.secret_id is not None
            given = approle.secret_id
        if not approle.wrapped:
            return given
        if self._unwrapped is not None and given.matches(self._unwrapped[0]):
            return self._unwrapped[1]
        secret_id = await self._unwrap_secret_id(given)
        # A wrapping token opens once, and the secret id in it may do for many logins.
        self._unwrapped = (given.reveal(), secret_id)
        return secret_id

    async def _unwrap_secret_id(self, wrapping: Secret) -> Secret:
        stale = "the wrapping token is spent, or has expired: if you did not use it, somebody has read the secret id"
        try:
            answer = await self._client.send(
                Request("post", "sys/wrapping/lookup", "look a wrapping token up", {"token": wrapping.reveal()})
            )
            origin = text_of(answer.part("data"), "creation_path")
            # Whoever swaps the token for one of his own would have us log in as somebody else.
            mount = re.escape(self._settings.auth_mount)
            if not re.fullmatch(rf"auth/{mount}/role/[^/]+/secret-id", origin):
                raise StoreUnavailable(f"the wrapping token does not wrap a secret id of auth/{mount}: do not use it")
            answer = await self._client.send(
                Request("post", "sys/wrapping/unwrap", "unwrap the secret id", token=wrapping)
            )
        except (Invalid, Refused):
            raise StoreUnavailable(stale) from None
        return Secret(text_of(answer.part("data"), "secret_id"))

    async def _keep(self) -> None:
        """Renew in time; log in anew when that does not help any more."""
        while True:
            wait = self._next_look()
            self._changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
                continue
            except TimeoutError:
                pass
            own = self._own
            if own is None or own.ends is None:
                continue
            try:
                await self._renew(own)
            except (VaultFault, StoreUnavailable) as error:
                logger.warning("the proxy's own Vault token could not be renewed: %s", error)
                await asyncio.sleep(_RETRY_S if self._rest(own) > 2 * _RETRY_S else _LEAST_S)

    def _next_look(self) -> float:
        own = self._own
        if own is None or own.ends is None:
            return _LOOK_AGAIN_S
        # At a third of its life left, and at half of what is left when that was missed.
        return max(self._rest(own) - own.ttl_s / 3, _LEAST_S)

    def _rest(self, own: _Own) -> float:
        return 0.0 if own.ends is None else own.ends - asyncio.get_running_loop().time()

    async def _renew(self, own: _Own) -> None:
        if own.renewable and not _over(own):
            try:
                answer = await self._client.send(
                    Request("post", "auth/token/renew-self", "renew the proxy's token", {}, token=own.token, again=True)
                )
                auth = answer.part("auth")
                renewed = _own(own.token, whole_of(auth, "lease_duration"), auth.get("renewable") is True)
                if self._own is own:
                    self._own = renewed
                # Its maximum is near when it got no longer by this.
                if renewed.ttl_s > own.ttl_s / 2:
                    return
            except (Refused, Invalid):
                pass  # past its maximum, or dead
        await self._token(instead_of=own.token)


def _own(token: Secret, ttl_s: int, renewable: bool) -> _Own:
    ends = asyncio.get_running_loop().time() + ttl_s if ttl_s > 0 else None
    return _Own(token, ends, ttl_s, renewable)


def _over(own: _Own) -> bool:
    # Close before its end it could die on the way.
    return own.ends is not None and own.ends - asyncio.get_running_loop().time() < min(_UNUSED_S, own.ttl_s / 4)


def _with(request: Request, token: Secret) -> Request:
    return replace(request, token=token)


def _lookup_self(token: Secret) -> Request:
    return Request("get", "auth/token/lookup-self", "look the proxy's token up", token=token, again=True)


def _unprivileged(request: Request) -> StoreUnavailable:
    return StoreUnavailable(
        f"Vault does not let the proxy {request.what}: run `galley-vault-proxy bootstrap`, and attach its policy"
    )


async def _role_id(approle: AppRoleAuth) -> str:
    if isinstance(approle.role_id, Path):
        return (await _kept(approle.role_id, "GALLEY_VAULT_ROLE_ID_FILE")).reveal()
    return approle.role_id


async def _kept(path: Path, setting: str) -> Secret:
    """The one word in a file, as agents and kubelets write it. Raises StoreUnavailable."""
    try:
        text = await asyncio.to_thread(_head_of, path)
    except OSError as error:
        raise StoreUnavailable(f"{setting}: {path} cannot be read: {error.strerror}") from None
    if not _PRINTABLE.fullmatch(text):
        raise StoreUnavailable(f"{setting}: {path} does not hold one printable word")
    return Secret(text)


def _head_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("utf-8", "replace").strip()


def fault_to_error(fault: VaultFault) -> StoreUnavailable:
    """What of Vault's troubles the caller learns when no error of the port says more."""
    match fault:
        case Down():
            return StoreUnavailable(fault.message)
        case _:
            return StoreUnavailable(f"{fault.message}: run `galley-vault-proxy doctor`")
