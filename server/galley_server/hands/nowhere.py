"""What is outside for a server that has no vault proxy: nothing. No network for sandboxes, no servers for agents."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from galley_sandbox.port import Hand

from galley_server.hands.access import Access
from galley_server.hands.port import Reach, ServerFault, ToolCall, ToolOutcome
from galley_server.hands.results import not_run
from galley_server.wire.base import JSON

_WHY: Final = "this Galley server runs without a vault proxy (GALLEY_BROKER=off)"


class Nowhere:
    """Implements ToolServers and Outlets."""

    async def reach(self, session_id: str, access: Access) -> Reach:
        return Reach(
            faults=tuple(
                ServerFault(server.name, f"The MCP server {server.name!r} cannot be reached: {_WHY}.")
                for server in access.servers
            )
        )

    async def call(
        self, session_id: str, access: Access, call: ToolCall, schema: Mapping[str, JSON] | None
    ) -> ToolOutcome:
        return not_run(f"{_WHY}.")

    @asynccontextmanager
    async def open(self, session_id: str, hand: Hand) -> AsyncIterator[str | None]:
        yield None

    async def end(self, session_id: str) -> None:
        return None
