"""Pages of lists, and the answers to deletions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from galley_server.wire.base import Wire

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next_page` is the opaque cursor of what comes next, None at the end."""

    data: tuple[T, ...]
    next_page: str | None = None


@dataclass(frozen=True, slots=True)
class SessionPage(Page[T]):
    """The one list that can also be walked backwards."""

    prev_page: str | None = None


class DeletedSession(Wire):
    id: str
    type: Literal["session_deleted"] = "session_deleted"


class DeletedEnvironment(Wire):
    id: str
    type: Literal["environment_deleted"] = "environment_deleted"


class DeletedFile(Wire):
    id: str
    type: Literal["file_deleted"] = "file_deleted"


def join_json(items: Iterable[bytes]) -> bytes:
    """An array of texts that are JSON already."""
    return b"[" + b",".join(items) + b"]"
