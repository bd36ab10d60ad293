"""`/v1/vaults` and the credentials below: the official paths, onto what does the work."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import BaseModel
from starlette.types import ASGIApp

from galley_vault_proxy.credentials.bodies import read
from galley_vault_proxy.credentials.credentials import Credentials
from galley_vault_proxy.credentials.once import Once
from galley_vault_proxy.credentials.shapes import (
    CredentialCreate,
    CredentialUpdate,
    ListParams,
    VaultCreate,
    VaultUpdate,
)
from galley_vault_proxy.credentials.validate import Validator
from galley_vault_proxy.credentials.vaults import Vaults
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.http.answer import Json, resource
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call
from galley_vault_proxy.http.query import flag, text, whole
from galley_vault_proxy.state import State

M = TypeVar("M", bound=BaseModel)

_LIST: Final = {"limit": whole, "page": text, "include_archived": flag}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A body with what makes its call repeatable."""

    raw: bytes
    once: Once

    def as_(self, model: type[M]) -> M:
        return read(model, self.raw)


class VaultFace:
    """`once_key` keys the fingerprints of repeatable calls; it must not be in the state."""

    def __init__(
        self, vaults: Vaults, credentials: Credentials, validator: Validator, state: State, *, once_key: bytes
    ) -> None:
        self._vaults = vaults
        self._credentials = credentials
        self._validator = validator
        self._state = state
        self._once_key = once_key

    def paths(self) -> Paths:
        vault, credential = "/v1/vaults/{vault_id}", "/v1/vaults/{vault_id}/credentials/{credential_id}"
        return {
            "/v1/vaults": {
                "POST": Operation(self._create_vault),
                "GET": Operation(self._list_vaults, _LIST),
            },
            vault: {
                "GET": Operation(self._retrieve_vault),
                "POST": Operation(self._update_vault),
                "DELETE": Operation(self._delete_vault),
            },
            f"{vault}/archive": {"POST": Operation(self._archive_vault)},
            f"{vault}/credentials": {
                "POST": Operation(self._create),
                "GET": Operation(self._list, _LIST),
            },
            credential: {
                "GET": Operation(self._retrieve),
                "POST": Operation(self._update),
                "DELETE": Operation(self._delete),
            },
            f"{credential}/archive": {"POST": Operation(self._archive)},
            f"{credential}/mcp_oauth_validate": {"POST": Operation(self._validate)},
        }

    async def _create_vault(self, call: Call) -> ASGIApp:
        asked = await self._asked(call, "/v1/vaults")
        body = asked.as_(VaultCreate)
        return await self._repeatable(asked.once, lambda: self._vaults.create(body, once=asked.once))

    async def _list_vaults(self, call: Call) -> ASGIApp:
        return resource(await self._vaults.list(call.query(ListParams)))

    async def _retrieve_vault(self, call: Call) -> ASGIApp:
        return resource(await self._vaults.retrieve(call.param("vault_id")))

    async def _update_vault(self, call: Call) -> ASGIApp:
        vault_id = call.param("vault_id")
        asked = await self._asked(call, vault_id)
        body = asked.as_(VaultUpdate)
        return await self._repeatable(asked.once, lambda: self._vaults.update(vault_id, body, once=asked.once))

    async def _archive_vault(self, call: Call) -> ASGIApp:
        await call.nothing()
        return resource(await self._vaults.archive(call.param("vault_id")))

    async def _delete_vault(self, call: Call) -> ASGIApp:
        await call.nothing()
        return resource(await self._vaults.delete(call.param("vault_id")))

    async def _create(self, call: Call) -> ASGIApp:
        vault_id = call.param("vault_id")
        asked = await self._asked(call, vault_id, "credentials")
        body = asked.as_(CredentialCreate)
        return await self._repeatable(asked.once, lambda: self._credentials.create(vault_id, body, once=asked.once))

    async def _list(self, call: Call) -> ASGIApp:
        return resource(await self._credentials.list(call.param("vault_id"), call.query(ListParams)))

    async def _retrieve(self, call: Call) -> ASGIApp:
        return resource(await self._credentials.retrieve(*_names(call)))

    async def _update(self, call: Call) -> ASGIApp:
        names = _names(call)
        asked = await self._asked(call, *names)
        body = asked.as_(CredentialUpdate)
        return await self._repeatable(asked.once, lambda: self._credentials.update(*names, body, once=asked.once))

    async def _archive(self, call: Call) -> ASGIApp:
        await call.nothing()
        return resource(await self._credentials.archive(*_names(call)))

    async def _delete(self, call: Call) -> ASGIApp:
        await call.nothing()
        return resource(await self._credentials.delete(*_names(call)))

    async def _validate(self, call: Call) -> ASGIApp:
        await call.nothing()
        return resource(await self._validator.validate(*_names(call)))

    async def _asked(self, call: Call, *path: str) -> _Asked:
        kind = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise InvalidRequest(f"content-type: {kind[:80] or 'missing'}; send application/json")
        raw = await call.body()
        request = (*(part.encode(errors="replace") for part in path), raw)
        return _Asked(raw, Once.of(call.header(b"idempotency-key"), self._once_key, *request))

    async def _repeatable(self, once: Once, effect: Callable[[], Awaitable[BaseModel]]) -> ASGIApp:
        return Json(await once.run(self._state, effect))


def _names(call: Call) -> tuple[str, str]:
    return call.param("vault_id"), call.param("credential_id")
