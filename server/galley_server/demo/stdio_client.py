"""The demo's MCP client: the tools it calls, through `galley mcp` on stdio, as Claude Desktop would call them."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from mcp import Client, StdioServerParameters
from mcp_types import Implementation

from galley_server import __version__
from galley_server.errors import GalleyError
from galley_server.gist import JSON

SHIM: Final = ("-P", "-m", "galley_server", "mcp")
_WAIT_S: Final = 20
_ANSWER_S: Final = 60.0


class ToolFailed(GalleyError):
    """A Galley tool answered with an error."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened since the batch before."""

    events: tuple[Mapping[str, JSON], ...]
    next_after: str
    status: str
    stop_reason: str | None
    has_more: bool

    @property
    def last(self) -> bool:
        return self.status in ("idle", "terminated") and not self.has_more


class Galley:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def upload(self, name: str, text: str) -> str:
        file = await self._call("upload_file", filename=name, content=text, media_type="text/csv")
        return str(file["id"])

    async def create_session(self, *, title: str, file_id: str) -> tuple[str, str]:
        """Return the new session's id and the cursor in front of its first event."""
        session = await self._call("create_session", title=title, file_ids=[file_id])
        return str(session["session_id"]), str(session["next_after"])

    async def send(self, session_id: str, text: str) -> None:
        await self._call("send_message", session_id=session_id, text=text)

    async def follow(self, session_id: str, after: str) -> AsyncIterator[Batch]:
        """Yield what happens until the session rests."""
        while True:
            found = await self._call(
                "read_events", session_id=session_id, after=after, wait_s=_WAIT_S, limit=200, view="full"
            )
            batch = Batch(
                events=tuple(found["events"]),
                next_after=found["next_after"],
                status=found["status"],
                stop_reason=found.get("stop_reason"),
                has_more=found["has_more"],
            )
            yield batch
            if batch.last:
                return
            after = batch.next_after

    async def tokens(self, session_id: str) -> tuple[int, int]:
        """Tokens in and out so far."""
        session = await self._call("get_session", session_id=session_id)
        return session["input_tokens"] + session["cache_read_input_tokens"], session["output_tokens"]

    async def archive(self, session_id: str) -> None:
        await self._call("archive_session", session_id=session_id)

    async def _call(self, tool: str, **arguments: object) -> Mapping[str, Any]:
        result = await self._client.call_tool(tool, arguments, read_timeout_seconds=_ANSWER_S)
        if result.is_error or result.structured_content is None:
            raise ToolFailed(" ".join(getattr(block, "text", "") for block in result.content) or f"{tool} failed")
        return dict(result.structured_content)


@asynccontextmanager
async def connected(environ: Mapping[str, str]) -> AsyncIterator[Galley]:
    """A client, and the shim it starts."""
    parameters = StdioServerParameters(command=sys.executable, args=list(SHIM), env=dict(environ))
    async with Client(parameters, client_info=Implementation(name="galley-demo", version=__version__)) as client:
        yield Galley(client)
