"""`/v1/files`: uploads and downloads, neither of which is ever in memory as a whole."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from galley_server.errors import InvalidRequest
from galley_server.http.answer import Json, page, resource
from galley_server.http.boundary import Operation, Paths
from galley_server.http.call import MEBIBYTE, Call, media_type
from galley_server.http.multipart import FormReader, PartBegins, PartData, PartEnds, Piece
from galley_server.http.query import text, whole
from galley_server.runtime.files import Files, Incoming
from galley_server.runtime.idempotency import Idempotency
from galley_server.wire.file import File, FileUpload
from galley_server.wire.query import FileQuery
from galley_server.wire.validation import take

_LIST = {"ids[]": text, "limit": whole, "page": text, "scope_id": text}
# Boundaries, headers and the other field.
_AROUND_FILE: Final = MEBIBYTE
_FIELD_LIMIT: Final = 64


class FileFace:
    def __init__(self, files: Files, *, file_limit: int | None) -> None:
        self._files = files
        self._limit = None if file_limit is None else file_limit + _AROUND_FILE

    def paths(self) -> Paths:
        return {
            "/v1/files": {"POST": Operation(self.upload), "GET": Operation(self.list, _LIST)},
            "/v1/files/{file_id}": {"GET": Operation(self.retrieve), "DELETE": Operation(self.delete)},
            "/v1/files/{file_id}/content": {"GET": Operation(self.content)},
        }

    async def upload(self, call: Call) -> Json:
        kind = call.header(b"content-type")
        if media_type(kind) != "multipart/form-data":
            raise InvalidRequest(f"content-type: {media_type(kind) or 'missing'}; send multipart/form-data")
        reader = FormReader(kind or "")
        async with self._files.receive() as incoming:
            form = UploadForm(incoming)
            async for data in await call.chunks(limit=self._limit):
                for piece in reader.feed(data):
                    await form.take(piece)
            reader.close()
            upload = form.upload()

            def once(sha256: str) -> Idempotency | None:
                return call.once_for(json.dumps([upload.model_dump(), sha256]).encode())

            file = await incoming.store(
                filename=upload.filename,
                media_type=upload.media_type,
                expires_in_seconds=upload.expires_in_seconds,
                once=once,
            )
        return resource(file)

    async def list(self, call: Call) -> Json:
        return page(await self._files.list(call.query(FileQuery)))

    async def retrieve(self, call: Call) -> Json:
        return resource(await self._files.retrieve(call.param("file_id")))

    async def content(self, call: Call) -> "Download":
        file = await self._files.retrieve(call.param("file_id"))
        content = self._files.content(file.id)
        # Asked for now: whether there is a content is known before the status goes out.
        return Download(file, await anext(content, b""), content)

    async def delete(self, call: Call) -> Json:
        await call.nothing()
        return resource(await self._files.delete(call.param("file_id")))


class UploadForm:
    """Sorts the parts of an upload: the file goes on as it comes, the fields are kept. Their order is the client's."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._part: PartBegins | None = None
        self._file: PartBegins | None = None
        self._fields: dict[str, bytes] = {}

    async def take(self, piece: Piece) -> None:
        match piece:
            case PartBegins():
                self._begin(piece)
            case PartData(data) if self._part is self._file:
                await self._incoming.write(data)
            case PartData(data):
                self._extend(data)
            case PartEnds():
                self._part = None

    def upload(self) -> FileUpload:
        """What came with the file, once everything has come."""
        if self._file is None:
            raise InvalidRequest("file: Field required")
        expires = self._fields.get("expires_in_seconds")
        return take(
            FileUpload,
            {
                "filename": self._file.filename,
                "media_type": self._file.media_type,
                "expires_in_seconds": None
                if expires is None
                else whole("expires_in_seconds", expires.decode("latin-1")),
            },
        )

    def _begin(self, part: PartBegins) -> None:
        known = {"file", "expires_in_seconds"}
        if part.name not in known:
            raise InvalidRequest(f"{part.name[:80]}: unknown field; an upload has file and expires_in_seconds")
        if part.name in self._fields or (part.name == "file" and self._file is not None):
            raise InvalidRequest(f"{part.name}: given more than once")
        self._part = part
        if part.name == "file":
            self._file = part
        else:
            self._fields[part.name] = b""

    def _extend(self, data: bytes) -> None:
        assert self._part is not None
        name = self._part.name
        self._fields[name] += data
        if len(self._fields[name]) > _FIELD_LIMIT:
            raise InvalidRequest(f"{name}: longer than {_FIELD_LIMIT} bytes")


class Download:
    def __init__(self, file: File, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._file = file
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", self._file.mime_type.encode("latin-1")),
            (b"content-length", str(self._file.size_bytes).encode()),
            (b"content-disposition", f"attachment; filename*=UTF-8''{quote(self._file.filename, safe='')}".encode()),
            # Whoever uploaded it chose its type; no browser shall guess a more dangerous one.
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._rest) as rest:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for piece in rest:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
