"""Requests about sessions: what may be sent, with the documented limits. No I/O here.

Source of the shapes: `anthropic.types.beta`, package 2.12.
"""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from galley_server.wire.agent_request import AgentRef, AgentWithOverrides, McpServers, Tools, WithTools
from galley_server.wire.base import Wire
from galley_server.wire.bounds import Id, Metadata, MetadataPatch, NoBudget, Title, not_here
from galley_server.wire.event_request import (
    MAX_FILE_DOCUMENTS,
    MAX_INITIAL_EVENTS,
    DocumentParam,
    FileParam,
    InitialEventParam,
    UserMessageParam,
)
from galley_server.wire.union import ByType
from galley_server.wire.validation import RuleBroken

MAX_RESOURCES: Final = 500
MAX_VAULTS: Final = 50
UPLOADS: Final = "/mnt/session/uploads"
WORKSPACE: Final = "/workspace"

ONLY_FILES: Final = ByType(
    refused=(
        ("github_repository", "Repositories are not supported in this release of Galley; give files"),
        ("memory_store", "Memory stores are not supported in this release of Galley; give files"),
    )
)


def mount_path(given: str | None, file_id: str) -> str:
    """Where a file appears in the sandbox.

    An absolute path under `/workspace` or `/mnt/session/uploads` is taken as it is; every other path, absolute or not,
    is rooted in `/mnt/session/uploads`, as the official API does it.
    """
    if given is None:
        return f"{UPLOADS}/{file_id}"
    if given.startswith((f"{UPLOADS}/", f"{WORKSPACE}/")):
        return given
    return f"{UPLOADS}/{given.lstrip('/')}"


class FileResourceParams(Wire):
    type: Literal["file"]
    file_id: Id
    mount_path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None

    @field_validator("mount_path")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is None:
            return None
        parts = path.removeprefix("/").split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or "\0" in path:
            raise PydanticCustomError(
                "path", "Input should be a path to a file, without empty parts, '.' and '..', each part up to 255 bytes"
            )
        return path


ResourceParam: TypeAlias = Annotated[FileResourceParams, ONLY_FILES]
AgentParam: TypeAlias = Annotated[Id | AgentRef | AgentWithOverrides, ByType()]


class SessionCreate(Wire):
    agent: AgentParam
    environment_id: Id
    title: Title | None = None
    metadata: Metadata = Field(default_factory=dict)
    resources: Annotated[tuple[ResourceParam, ...], Field(max_length=MAX_RESOURCES)] = ()
    initial_events: Annotated[tuple[InitialEventParam, ...], Field(max_length=MAX_INITIAL_EVENTS)] = ()
    vault_ids: Annotated[tuple[Id, ...], Field(max_length=MAX_VAULTS)] = ()
    budget: NoBudget = None

    @field_validator("resources")
    @classmethod
    def _check_paths(cls, resources: tuple[FileResourceParams, ...]) -> tuple[FileResourceParams, ...]:
        places: dict[str, int] = {}
        for index, resource in enumerate(resources):
            place = mount_path(resource.mount_path, resource.file_id)
            if place in places:
                raise RuleBroken(f"resources.{places[place]} is mounted there too", index, "mount_path")
            places[place] = index
        for place, index in places.items():
            inside = next((other for other in places if other.startswith(place + "/")), None)
            if inside is not None:
                raise RuleBroken(
                    f"resources.{places[inside]} needs a directory in the place of this file", index, "mount_path"
                )
        return resources

    @field_validator("initial_events")
    @classmethod
    def _check_documents(cls, events: tuple[UserMessageParam, ...]) -> tuple[UserMessageParam, ...]:
        count = sum(
            isinstance(block, DocumentParam) and isinstance(block.source, FileParam)
            for event in events
            for block in event.content
        )
        if count > MAX_FILE_DOCUMENTS:
            raise RuleBroken(f"At most {MAX_FILE_DOCUMENTS} documents may come from files (got {count})")
        return events


class SessionAgentUpdate(WithTools):
    tools: Tools = ()
    mcp_servers: McpServers = ()


class SessionUpdate(Wire):
    """Left out: kept. Null clears the title, or the whole metadata."""

    title: Title | None = None
    metadata: MetadataPatch | None = None
    agent: SessionAgentUpdate | None = None
    budget: NoBudget = None
    vault_ids: Annotated[None, not_here("The vaults of a session cannot be changed", nothing=())] = None
