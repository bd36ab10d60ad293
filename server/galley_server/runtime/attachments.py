"""What a file in a message stands for when a model is asked: an image, a PDF, or text."""

import base64
from collections.abc import Iterable, Sequence
from typing import Final

from anyio import to_thread

from galley_server.brain.prompt import FileContents
from galley_server.errors import InvalidRequest
from galley_server.runtime.files import Files
from galley_server.wire.content import Base64Source, PlainTextSource
from galley_server.wire.event_request import AnyClientEvent, file_references

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


async def check_attachments(files: Files, events: Sequence[AnyClientEvent], field: str) -> None:
    """Raise, naming the place, unless every file that the events refer to is there and can be shown to a model."""
    references = [
        (f"{field}.{index}." + ".".join(map(str, place)), kind, file_id)
        for index, event in enumerate(events)
        for place, kind, file_id in file_references(event)
    ]
    found = await files.check((place, file_id) for place, _, file_id in references)
    for place, kind, file_id in references:
        mime_type = found[file_id].mime_type
        if not (is_image(mime_type) if kind == "image" else is_document(mime_type)):
            fitting = "PNG, JPEG, GIF or WebP" if kind == "image" else "PDF or text; mount others as resources"
            raise InvalidRequest(f"{place}: '{file_id}' is {mime_type}; a model can be shown {fitting}")


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
