"""One request as a handler sees it: each part is read and checked when it is asked for."""

import asyncio
from collections.abc import Mapping
from typing import Final, TypeVar

from pydantic import BaseModel
from starlette.types import Receive, Scope

from galley_vault_proxy.errors import InvalidRequest, TooLarge
from galley_vault_proxy.http.envelope import SlowRequest
from galley_vault_proxy.http.validation import decode, read, take

M = TypeVar("M", bound=BaseModel)

# A body that stops coming, or comes a byte at a time, must not hold its memory for ever.
_STALL_S: Final = 20.0
_WHOLE_S: Final = 60.0


class Gone(Exception):
    """The client hung up: there is nobody to answer."""


class Call:
    """What a handler may ask of a request."""

    def __init__(self, scope: Scope, receive: Receive, *, given: Mapping[str, object], body_limit: int) -> None:
        self._scope = scope
        self._receive = receive
        self._given = given
        self._limit = body_limit

    @property
    def request_id(self) -> str:
        return str(self._scope["galley.request_id"])

    def param(self, name: str) -> str:
        """The part of the path called `name`."""
        return str(self._scope["path_params"][name])

    def query(self, model: type[M]) -> M:
        return take(model, self._given)

    def header(self, name: bytes) -> str | None:
        """The value of a header. Raises InvalidRequest when it is there twice: two readers would take two values."""
        found = [value for key, value in self._scope["headers"] if key == name]
        if len(found) > 1:
            raise InvalidRequest(f"{name.decode()}: given more than once")
        return str(found[0].decode("latin-1")) if found else None

    async def json(self, model: type[M]) -> M:
        """Read the body as `model`; raise InvalidRequest or TooLarge, which say what is wrong and where."""
        kind = (self.header(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise InvalidRequest(f"content-type: {kind[:80] or 'missing'}; send application/json")
        return read(model, await self.body())

    async def nothing(self) -> None:
        """Read a body that must be empty; an empty object counts as empty."""
        raw = await self.body()
        if raw and decode(raw) != {}:
            raise InvalidRequest("this call takes no body")

    async def body(self) -> bytes:
        """The body, refused as soon as it is known to be too large."""
        announced = self.header(b"content-length")
        if announced is not None and announced.isdecimal() and int(announced) > self._limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(_WHOLE_S):
                return await self._read()
        except TimeoutError:
            raise SlowRequest("the request body did not arrive in time") from None

    async def _read(self) -> bytes:
        body = bytearray()
        while True:
            async with asyncio.timeout(_STALL_S):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > self._limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request is larger than {self._limit // 1024} KB")
