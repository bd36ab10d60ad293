"""Files as the API shows them. Source of the shape: `anthropic.types.beta`, package 2.12."""

from typing import Annotated, Literal

from pydantic import Field

from galley_server.wire.base import Timestamp, Wire


class FileScope(Wire):
    """What a file belongs to: it goes when that goes."""

    id: str
    type: Literal["session"] = "session"


class File(Wire):
    id: str
    type: Literal["file"] = "file"
    filename: str
    mime_type: str
    size_bytes: int
    created_at: Timestamp
    downloadable: bool
    expires_at: Timestamp | None = None
    scope: FileScope | None = None


class FileUpload(Wire):
    """What comes with an upload beside the bytes."""

    filename: str | None = None
    media_type: str | None = None
    expires_in_seconds: Annotated[int, Field(ge=3600, le=7_776_000)] | None = None
