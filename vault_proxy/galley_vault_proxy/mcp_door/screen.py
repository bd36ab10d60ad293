"""What the door does to messages that come back: tool lists filtered, secrets taken out, the rest byte for byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from galley_vault_proxy.credentials.port import Injection
from galley_vault_proxy.grant.token import Grant
from galley_vault_proxy.mcp_door.catalogue import Catalogue, PinNews
from galley_vault_proxy.mcp_door.failure import ServerFailed
from galley_vault_proxy.mcp_door.fairness import aside
from galley_vault_proxy.mcp_door.jsonrpc import dump, read_from_server
from galley_vault_proxy.mcp_door.sse import read_event, with_data
from galley_vault_proxy.policy import Allow, ToolCall, decide
from galley_vault_proxy.redact import Patterns


class BadServer(ServerFailed):
    """The server sent what cannot be passed on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="bad_answer")


@dataclass(slots=True)
class Screen:
    """For one exchange. `injection`: what the server was sent last; `news`: what the audit is to tell of tools."""

    grant: Grant
    server: str
    catalogue: Catalogue
    patterns: Patterns
    injection: Injection | None = None
    news: list[PinNews] = field(default_factory=list)
    redacted: int = 0
    answered: bool = False

    async def message(self, data: bytes) -> bytes:
        """One JSON message. Raises BadServer."""
        clean = await aside(self.text, data)
        changed = await self._ruled(clean)
        return clean if changed is None else changed

    async def event(self, raw: bytes) -> bytes:
        """One event of a stream. Raises BadServer."""
        clean = await aside(self.text, raw)
        data = read_event(clean).data
        changed = await self._ruled(data) if data else None
        return clean if changed is None else with_data(clean, changed)

    def text(self, data: bytes) -> bytes:
        """Anything else: only secrets are taken out."""
        clean = self.patterns.redact(data)
        self.redacted += clean is not data
        return clean

    async def value(self, message: dict[str, Any]) -> bytes:
        """One message that was taken apart on its way."""
        return await self.message(dump(message))

    async def tools(self, listed: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """A list of tools that the door has asked for itself. What is kept of it must hold no secret either."""
        data = dump(listed)
        clean = await aside(self.text, data)
        if clean is data:
            return listed
        found: Sequence[Mapping[str, Any]] = await aside(_parsed, clean)
        return found

    async def _ruled(self, data: bytes) -> bytes | None:
        """The message as the rules leave it; None if they leave it as it is.

        Secrets are out of it already: definitions are kept, and shown to whoever runs the proxy. If one stood outside
        a string, what is left is no JSON.
        """
        value = await aside(_parsed, data)
        if not isinstance(value, dict):
            raise BadServer("the server sent a message that is not a JSON object")
        return dump(value) if await self._rule(value) else None

    async def _rule(self, message: dict[str, Any]) -> bool:
        if message.get("method") == "notifications/tools/list_changed":
            self.catalogue.stale()
        if "method" not in message and ("result" in message or "error" in message):
            self.answered = True
        result = message.get("result")
        if not isinstance(result, dict):
            return False
        changed = False
        if isinstance(result.get("instructions"), str):
            changed = await self._instructions(result)
        if isinstance(result.get("tools"), list):
            changed = await self._tools(result) or changed
        return changed

    async def _instructions(self, result: dict[str, Any]) -> bool:
        if await self.catalogue.instructions(result["instructions"], self.news):
            return False
        del result["instructions"]
        return True

    async def _tools(self, result: dict[str, Any]) -> bool:
        """By its form, whatever request it answers: an answer may come again on another stream."""
        listed = result["tools"]
        tools = [tool for tool in listed if isinstance(tool, dict)]
        standing = await self.catalogue.take(tools, self.news)
        shown = [tool for tool in tools if self._shown(tool, standing)]
        if len(shown) == len(listed):
            return False
        result["tools"] = shown
        if "cacheScope" in result:
            # What is left is for this grant, so nobody may keep it for another.
            result["cacheScope"] = "private"
        return True

    def _shown(self, tool: Mapping[str, Any], standing: frozenset[str]) -> bool:
        name = tool.get("name")
        if not isinstance(name, str) or name not in standing:
            return False
        return isinstance(decide(self.grant, ToolCall(self.server, name)), Allow)


def _parsed(data: bytes) -> Any:
    try:
        return read_from_server(data)
    except ValueError as error:
        raise BadServer(f"the server sent a message that cannot be read: {type(error).__name__}") from None
