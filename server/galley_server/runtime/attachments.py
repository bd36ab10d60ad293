"""What a file in a message stands for when a model is asked: an image, a PDF, or text."""

import base64
from collections.abc import Iterable
from typing import Final

from anyio import to_thread

from galley_server.brain.prompt import FileContents
from galley_server.runtime.files import Files
from galley_server.wire.content import Base64Source, PlainTextSource

IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
PDF: Final = "application/pdf"
# The Messages API takes 32 MB; base64 adds a third.
MAX_BYTES: Final = 24 * 1024 * 1024

_TEXT: Final = frozenset(
    {
        "application/json",
        "application/xml",
        "application/yaml",
        "application/x-yaml",
        "application/toml",
        "application/javascript",
        "application/sql",
        "application/x-sh",
        "application/x-ndjson",
    }
)


def is_image(mime_type: str) -> bool:
    return mime_type in IMAGES


def is_document(mime_type: str) -> bool:
    return mime_type == PDF or is_text(mime_type)


def is_text(mime_type: str) -> bool:
    return mime_type.startswith("text/") or mime_type in _TEXT or mime_type.endswith(("+json", "+xml"))


class Attachments:
    """The brain's view of the files that messages refer to."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def contents(self, file_ids: Iterable[str]) -> FileContents:
        """Return what can be shown to a model; files that are gone are missing from the answer."""
        found: dict[str, Base64Source | PlainTextSource] = {}
        for file_id in file_ids:
            whole = await self._files.whole(file_id, limit=MAX_BYTES)
            if whole is None:
                continue
            file, data = whole
            if is_image(file.mime_type) or file.mime_type == PDF:
                coded = await to_thread.run_sync(base64.b64encode, data)
                found[file_id] = Base64Source(media_type=file.mime_type, data=coded.decode())
            elif is_text(file.mime_type):
                found[file_id] = PlainTextSource(data=data.decode("utf-8", errors="replace"))
        return found
