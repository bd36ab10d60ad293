"""The tools about agents, environments and files."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from galley_server.errors import InvalidRequest
from galley_server.mcp.tool import Output
from galley_server.runtime.abilities import SANDBOX_TOOLS, abilities_of
from galley_server.runtime.idempotency import Idempotency
from galley_server.runtime.runtime import Runtime
from galley_server.wire.agent import Recipe, SandboxTool
from galley_server.wire.agent_request import AgentCreate
from galley_server.wire.environment import EnvironmentCreate
from galley_server.wire.file import File
from galley_server.wire.query import AgentQuery, EnvironmentQuery
from galley_server.wire.validation import take

MAX_PIECE: Final = 200_000
"""Bytes of a file in one result: clients of the handshake era take at most 1 MiB, and get text twice."""

Limit: TypeAlias = Annotated[int, Field(ge=1, le=100, description="How many to return at most.")]
PageCursor: TypeAlias = Annotated[
    str | None, Field(description="`next_page` of the result before, to go on from there.")
]
Key: TypeAlias = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=200,
        description="Any string of yours. A repeated call with the same key has no second effect and gets the first "
        "result.",
    ),
]


class AgentOut(Output):
    """An agent: a recipe that sessions run."""

    id: str
    name: str
    version: int
    model: str
    description: str | None = None
    tools: list[str]
    """Built-in tools that are enabled, then custom ones."""
    asks_before: list[str] | None = None
    """Tools that wait for confirm_tool at each call."""
    mcp_servers: list[str] | None = None
    """Names of its MCP servers."""


class AgentsOut(Output):
    agents: list[AgentOut]
    next_page: str | None = None


class EnvironmentOut(Output):
    """An environment: the template of a session's sandbox."""

    id: str
    name: str
    description: str | None = None


class EnvironmentsOut(Output):
    environments: list[EnvironmentOut]
    next_page: str | None = None


class VaultOut(Output):
    """A vault: credentials that sessions use without ever seeing them. None is ever shown here either."""

    id: str
    name: str
    opens: list[str]
    """URLs of MCP servers, and variables of the sandbox, that it has a credential for."""


class VaultsOut(Output):
    vaults: list[VaultOut]
    next_page: str | None = None


class FileOut(Output):
    """A stored file. Give its id to create_session to put it into a sandbox."""

    id: str
    filename: str
    media_type: str
    size_bytes: int


class FileContentOut(FileOut):
    """A piece of a file: as `text` where it is text, else as `base64`. `next_offset` is left out at the end."""

    text: str | None = None
    base64: str | None = None
    next_offset: int | None = None


def once_of(tool: str, key: str | None, **arguments: object) -> Idempotency | None:
    """A key is good for one tool with one set of arguments."""
    if key is None:
        return None
    text = json.dumps([tool, arguments], sort_keys=True, default=str)
    return Idempotency(f"mcp {tool} {key}", hashlib.sha256(text.encode()).hexdigest())


def show_agent(agent: Recipe) -> AgentOut:
    may = abilities_of(agent)
    return AgentOut(
        id=agent.id,
        name=agent.name,
        version=agent.version,
        model=agent.model.id,
        description=agent.description,
        tools=list(may.tools),
        asks_before=list(may.asked) or None,
        mcp_servers=list(may.servers) or None,
    )


def show_file(file: File) -> FileOut:
    return FileOut(id=file.id, filename=file.filename, media_type=file.mime_type, size_bytes=file.size_bytes)


class CatalogueTools:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def list_agents(self, limit: Limit = 20, page: PageCursor = None) -> AgentsOut:
        """List the agents that sessions can be created from, newest first. The default agent is always there."""
        await self._runtime.agents.default()
        found = await self._runtime.agents.list(AgentQuery(limit=limit, page=page))
        return AgentsOut(agents=[show_agent(agent) for agent in found.data], next_page=found.next_page)

    async def create_agent(
        self,
        name: Annotated[str, Field(description="What people call it, 1 to 256 characters.")],
        system: Annotated[str | None, Field(description="System prompt: who the agent is and how it works.")] = None,
        model: Annotated[str | None, Field(description="Model id. Left out: the server's default model.")] = None,
        description: Annotated[str | None, Field(description="One sentence for people who choose an agent.")] = None,
        tools: Annotated[
            list[SandboxTool] | None, Field(description="Built-in tools it may use. Left out: all of them.")
        ] = None,
        asks_before: Annotated[
            list[SandboxTool] | None,
            Field(description="Tools that stop the session at each call until confirm_tool is called."),
        ] = None,
        mcp_servers: Annotated[
            dict[str, str] | None,
            Field(description="MCP servers it may use: name and URL. Each call of their tools waits for confirm_tool."),
        ] = None,
        idempotency_key: Key = None,
    ) -> AgentOut:
        """Create an agent: a recipe (model, system prompt, tools) that any number of sessions can run."""
        once = once_of(
            "create_agent",
            idempotency_key,
            name=name,
            system=system,
            model=model,
            description=description,
            tools=tools,
            asks_before=asks_before,
            mcp_servers=mcp_servers,
        )
        servers = mcp_servers or {}
        request = take(
            AgentCreate,
            {
                "name": name,
                "model": model or self._runtime.settings.model.default,
                "system": system,
                "description": description,
                "mcp_servers": tuple({"type": "url", "name": name, "url": url} for name, url in servers.items()),
                "tools": (
                    _toolset(tools, asks_before or []),
                    *({"type": "mcp_toolset", "mcp_server_name": name} for name in servers),
                ),
            },
        )
        return show_agent(await self._runtime.agents.create(request, once=once))

    async def list_environments(self, limit: Limit = 20, page: PageCursor = None) -> EnvironmentsOut:
        """List the environments that sessions can run in, newest first. The default one is always there."""
        await self._runtime.environments.default()
        found = await self._runtime.environments.list(EnvironmentQuery(limit=limit, page=page))
        shown = [EnvironmentOut(id=one.id, name=one.name, description=one.description) for one in found.data]
        return EnvironmentsOut(environments=shown, next_page=found.next_page)

    async def create_environment(
        self,
        name: Annotated[str, Field(description="A name that no other environment has.")],
        description: Annotated[str | None, Field(description="One sentence for people who choose one.")] = None,
        allowed_hosts: Annotated[
            list[str] | None,
            Field(description="The only hosts that programs in it reach, e.g. *.example.com. Left out: public hosts."),
        ] = None,
        idempotency_key: Key = None,
    ) -> EnvironmentOut:
        """Create an environment: a template of the isolated Linux sandbox that a session gets for itself."""
        once = once_of(
            "create_environment",
            idempotency_key,
            name=name,
            description=description,
            allowed_hosts=allowed_hosts,
        )
        request = take(
            EnvironmentCreate,
            {"name": name, "description": description, "config": _limited(allowed_hosts)},
        )
        made = await self._runtime.environments.create(request, once=once)
        return EnvironmentOut(id=made.id, name=made.name, description=made.description)

    async def list_vaults(self, limit: Limit = 20, page: PageCursor = None) -> VaultsOut:
        """List the vaults whose credentials sessions can be given, newest first. `galley vault` fills them."""
        found = await self._runtime.vaults.list(limit=limit, page=page)
        shown = [VaultOut(id=one.id, name=one.name, opens=list(one.opens)) for one in found.data]
        return VaultsOut(vaults=shown, next_page=found.next_page)

    async def upload_file(
        self,
        filename: Annotated[str, Field(description="Its name, without a directory.")],
        content: Annotated[str, Field(description="The file itself: as text, or in base64 if `encoding` says so.")],
        encoding: Annotated[Literal["text", "base64"], Field(description="How `content` is written.")] = "text",
        media_type: Annotated[str | None, Field(description="Left out: guessed from the name.")] = None,
        idempotency_key: Key = None,
    ) -> FileOut:
        """Store a file (up to about 3 MB; larger ones go over HTTP). Give its id to create_session to work on it."""
        data = content.encode() if encoding == "text" else _decoded(content)

        async def once_whole() -> AsyncIterator[bytes]:
            yield data

        def once(sha256: str) -> Idempotency | None:
            return once_of("upload_file", idempotency_key, filename=filename, media_type=media_type, sha256=sha256)

        return show_file(await self._runtime.files.upload(filename, media_type, once_whole(), once=once))

    async def download_file(
        self,
        file_id: Annotated[str, Field(description="Id of an uploaded file, or of one that get_session lists.")],
        offset: Annotated[
            int, Field(ge=0, description="Where to begin, in bytes: `next_offset` of the result before.")
        ] = 0,
    ) -> FileContentOut:
        """Read a stored file, 200,000 bytes at a time."""
        file = await self._runtime.files.retrieve(file_id)
        data = await self._piece(file_id, offset)
        end = offset + len(data)
        text = _as_text(data, last=end >= file.size_bytes)
        used = end if text is None else offset + len(text.encode())
        return FileContentOut(
            **show_file(file).model_dump(),
            text=text,
            base64=base64.b64encode(data).decode() if text is None else None,
            next_offset=used if used < file.size_bytes else None,
        )

    async def _piece(self, file_id: str, offset: int) -> bytes:
        found = bytearray()
        at = 0
        async for piece in self._runtime.files.content(file_id):
            found += piece[max(0, offset - at) : max(0, offset + MAX_PIECE - at)]
            at += len(piece)
            if at >= offset + MAX_PIECE:
                break
        return bytes(found)


def _limited(hosts: list[str] | None) -> dict[str, object] | None:
    """An environment whose programs reach these hosts and the agent's MCP servers, and nothing else."""
    if hosts is None:
        return None
    networking = {"type": "limited", "allowed_hosts": tuple(hosts), "allow_mcp_servers": True}
    return {"type": "cloud", "networking": networking}


def _toolset(tools: list[SandboxTool] | None, asks_before: list[SandboxTool]) -> dict[str, object]:
    allowed = frozenset(SANDBOX_TOOLS if tools is None else tools)
    missing = sorted(set(asks_before) - allowed)
    if missing:
        raise InvalidRequest(f"asks_before: {', '.join(missing)} is not among `tools`")
    configs = [
        {
            "name": name,
            "enabled": name in allowed,
            "permission_policy": {"type": "always_ask" if name in asks_before else "always_allow"},
        }
        for name in SANDBOX_TOOLS
    ]
    return {"type": "agent_toolset_20260401", "configs": tuple(configs)}


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise InvalidRequest("content: Input should be valid base64, because encoding is 'base64'") from None


def _as_text(data: bytes, *, last: bool) -> str | None:
    """The piece as text, without a character that the piece cuts in two; None if it is no text."""
    for spare in range(1 if last else 4):
        try:
            text = data[: len(data) - spare].decode()
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return None
