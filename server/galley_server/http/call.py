"""One request as a handler sees it: each part is read and checked when it is asked for."""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from anyio import to_thread
from pydantic import BaseModel
from starlette.types import Receive, Scope

from galley_server.errors import InvalidRequest, TooLarge
from galley_server.http.body import decode, read
from galley_server.http.envelope import SlowRequest
from galley_server.runtime.idempotency import Idempotency
from galley_server.wire.validation import take

M = TypeVar("M", bound=BaseModel)

MEBIBYTE: Final = 1 << 20
# A body that stops coming must not hold its memory for ever.
_STALL_S: Final = 60.0
# Parsing more than this would keep every other session waiting, so it goes to a thread.
_LARGE: Final = 256 * 1024
_KEY_HEADER: Final = b"idempotency-key"
_KEY: Final = re.compile(r"[!-~]{1,255}")


class Gone(Exception):
    """The client hung up: there is nobody to answer."""


class Call:
    """What a handler may ask of a request."""

    def __init__(self, scope: Scope, receive: Receive, *, given: Mapping[str, object], body_limit: int | None) -> None:
        self._scope = scope
        self._receive = receive
        self._given = given
        self._limit = body_limit
        self._digest = b""

    @property
    def request_id(self) -> str:
        return str(self._scope["galley.request_id"])

    def param(self, name: str) -> str:
        """The part of the path called `name`."""
        return str(self._scope["path_params"][name])

    def query(self, model: type[M]) -> M:
        return take(model, self._given)

    def header(self, name: bytes) -> str | None:
        for key, value in self._scope["headers"]:
            if key == name:
                return str(value.decode("latin-1"))
        return None

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """As they came, for a request that is passed on."""
        return tuple(self._scope["headers"])

    @property
    def raw_query(self) -> bytes:
        return bytes(self._scope["query_string"])

    async def json(self, model: type[M]) -> M:
        """Read the body as `model`; raise InvalidRequest or TooLarge, which say what is wrong and where."""
        kind = media_type(self.header(b"content-type"))
        if kind != "application/json":
            raise InvalidRequest(f"content-type: {kind or 'missing'}; send application/json")
        raw = await self._body()
        if len(raw) > _LARGE:
            return await to_thread.run_sync(self._take, model, raw)
        return self._take(model, raw)

    async def nothing(self) -> None:
        """Read a body that must be empty; an empty object counts as empty."""
        raw = await self._body()
        if raw and decode(raw) != {}:
            raise InvalidRequest("this call takes no body")

    def once(self) -> Idempotency | None:
        """What makes a repetition of this call harmless, if the client asked for that. Ask after the body is read."""
        return self.once_for(self._digest)

    def once_for(self, content: bytes) -> Idempotency | None:
        """As `once`, for a body that never is in one piece (and whose bytes differ from one retry to the next)."""
        key = self.header(_KEY_HEADER)
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise InvalidRequest("idempotency-key: use 1 to 255 printable ASCII characters without blanks")
        line = f"{self._scope['method']} {self._scope['path']}\n".encode()
        return Idempotency(key=key, fingerprint=hashlib.sha256(line + content).hexdigest())

    def _take(self, model: type[M], raw: bytes) -> M:
        if self.header(_KEY_HEADER) is not None:
            self._digest = hashlib.sha256(raw).digest()
        return read(model, raw)

    async def chunks(self, *, limit: int | None) -> "Chunks":
        """The body as it arrives, refused as soon as it is known to be larger than `limit`."""
        announced = self.header(b"content-length")
        if limit is not None and announced is not None and announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit)
        return Chunks(self._receive, limit)

    async def _body(self) -> bytes:
        pieces = [piece async for piece in await self.chunks(limit=self._limit)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Chunks:
    """An async iterator over a request body that counts what it hands out."""

    def __init__(self, receive: Receive, limit: int | None) -> None:
        self._receive = receive
        self._limit = limit
        self._count = 0
        self._more = True

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> bytes:
        while self._more:
            piece = await self._next()
            self._count += len(piece)
            if self._limit is not None and self._count > self._limit:
                raise _too_large(self._limit)
            if piece:
                return piece
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(_STALL_S):
                message = await self._receive()
        except TimeoutError:
            raise SlowRequest(f"no part of the request body arrived for {_STALL_S:g} s") from None
        if message["type"] == "http.disconnect":
            raise Gone
        self._more = message.get("more_body", False)
        return bytes(message.get("body", b""))


def media_type(content_type: str | None) -> str:
    """The type without its parameters, in lower case; empty when there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def _too_large(limit: int) -> TooLarge:
    shown = f"{limit // MEBIBYTE} MB" if limit >= MEBIBYTE else f"{limit} bytes"
    return TooLarge(f"the request is larger than {shown}")
