"""Content blocks of events, as clients send them and as tools return them.

Limits of size are kept where a block enters (the request body, the hand); here is only the shape.
Source of the shapes: `anthropic.types.beta.sessions`, package 2.12.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from galley_server.wire.base import Wire


class TextBlock(Wire):
    type: Literal["text"] = "text"
    text: str


class RedactedBlock(Wire):
    type: Literal["redacted"] = "redacted"


class Base64Source(Wire):
    type: Literal["base64"] = "base64"
    media_type: str
    data: str


class UrlSource(Wire):
    type: Literal["url"] = "url"
    url: str


class FileSource(Wire):
    type: Literal["file"] = "file"
    file_id: str


class PlainTextSource(Wire):
    type: Literal["text"] = "text"
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class ImageBlock(Wire):
    type: Literal["image"] = "image"
    source: Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type")]


class DocumentBlock(Wire):
    type: Literal["document"] = "document"
    source: Annotated[Base64Source | PlainTextSource | UrlSource | FileSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


class SearchResultText(Wire):
    type: Literal["text"] = "text"
    text: str


class Citations(Wire):
    enabled: bool


class SearchResultBlock(Wire):
    type: Literal["search_result"] = "search_result"
    source: str
    title: str
    content: tuple[SearchResultText, ...]
    citations: Citations


UserBlock: TypeAlias = Annotated[TextBlock | ImageBlock | DocumentBlock, Field(discriminator="type")]
ResultBlock: TypeAlias = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock, Field(discriminator="type")
]
