"""One MCPServer for every transport, with what the SDK leaves open in it closed.

The SDK is pinned below its next minor release: this module and the two transports reach into parts of it that may move.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, assert_never

from mcp.server import MCPServer, Server
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.mcpserver.tools import Tool
from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, PROTOCOL_VERSION_META_KEY
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError

from galley_server import __version__

_log = logging.getLogger(__name__)
_TELL_S = 1.0

INSTRUCTIONS = (
    "Galley runs agents for you in isolated sandboxes. create_session starts one and send_message gives it work; both "
    "return at once. Follow what it does with read_events, giving the last next_after as after, until it is idle."
)


SHUTTING_DOWN = (
    "The Galley server is shutting down and did not finish this call. Sessions continue when it runs again; "
    "repeat the call then (read first what has happened meanwhile)."
)


def build_server(
    tools: Sequence[Tool] = (), *, name: str = "galley", instructions: str = INSTRUCTIONS
) -> MCPServer[dict[str, Any]]:
    """The server that the socket and the HTTP endpoint serve, in both protocol eras."""
    changes = Changes()
    with _logging_left_alone():
        server: MCPServer[dict[str, Any]] = MCPServer(
            name,
            title="Galley",
            instructions=instructions,
            version=__version__,
            tools=list(tools),
            subscriptions=changes,
            middleware=[_contain, changes.watch],
        )
    lowlevel = lowlevel_of(server)
    plain = lowlevel.create_initialization_options
    # Clients of the handshake era ignore a change that was not announced. Changes makes the announcement true.
    announced = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    setattr(lowlevel, "create_initialization_options", lambda: plain(announced))  # noqa: B010 - no other knob
    return server


def lowlevel_of(server: MCPServer[Any]) -> Server[Any]:
    """The SDK keeps it private, and is the only place where initialisation and handlers can be reached."""
    return server._lowlevel_server


def close_listen_streams(server: MCPServer[Any]) -> None:
    """End every `subscriptions/listen` stream with its final result; an open one would hold up a shutdown for ever."""
    entry = lowlevel_of(server).get_request_handler("subscriptions/listen")
    if entry is not None and isinstance(entry.handler, ListenHandler):
        entry.handler.close()


def is_modern(params: Mapping[str, Any] | None) -> bool:
    """Whether a request is written in the modern era: each carries its protocol version in itself."""
    meta = params.get("_meta") if params else None
    return isinstance(meta, dict) and PROTOCOL_VERSION_META_KEY in meta


@contextlib.contextmanager
def _logging_left_alone() -> Iterator[None]:
    """MCPServer's constructor configures the root logger unless somebody has: how we log is not its decision."""
    placeholder = logging.NullHandler()
    logging.root.addHandler(placeholder)
    try:
        yield
    finally:
        logging.root.removeHandler(placeholder)


async def _contain(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """The request boundary: what nobody foresaw is logged here and shown to nobody."""
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise
    except Exception as error:
        _log.exception("MCP %s failed", ctx.method)
        raise MCPError(INTERNAL_ERROR, "Internal error of the Galley server. Its log has the details.") from error


class Changes(InMemorySubscriptionBus):
    """Where list changes are published. Tells `subscriptions/listen` streams, and connections of the handshake era."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions: set[ServerSession] = set()

    async def publish(self, event: ServerEvent) -> None:
        await super().publish(event)
        async with asyncio.TaskGroup() as tasks:
            for session in self._sessions:
                tasks.create_task(_tell(session, event))

    async def watch(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Middleware that sees which connections exist."""
        result = await call_next(ctx)
        if ctx.method == "notifications/initialized" and ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            # The connection's own exit stack is the only thing that ends with it, and only the session knows it.
            self._sessions.add(ctx.session)
            ctx.session._connection.exit_stack.callback(self._sessions.discard, ctx.session)
        return result


async def _tell(session: ServerSession, event: ServerEvent) -> None:
    with contextlib.suppress(TimeoutError):  # a client that does not read misses the change, and holds up nobody
        async with asyncio.timeout(_TELL_S):
            match event:
                case ToolsListChanged():
                    await session.send_tool_list_changed()
                case PromptsListChanged():
                    await session.send_prompt_list_changed()
                case ResourcesListChanged():
                    await session.send_resource_list_changed()
                case ResourceUpdated():
                    pass  # resources/subscribe is not offered in that era
                case _:
                    assert_never(event)
