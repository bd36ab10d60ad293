"""The home's Unix socket: MCP in both protocol eras for every local client, newline-delimited as on stdio."""

import asyncio
import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import anyio
from mcp.server import MCPServer, Server
from mcp.server.connection import Connection
from mcp.server.runner import ServerRunner, aclose_shielded, modern_on_request
from mcp.shared.dispatcher import DispatchContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

from galley_server.errors import ConfigError
from galley_server.home import require_private
from galley_server.mcp.lines import MAX_CLIENT_LINE, MAX_SERVER_LINE, LineReader, TooLong, too_long_message
from galley_server.mcp.peer import is_ours, peer_uid
from galley_server.mcp.server import SHUTTING_DOWN, is_modern, lowlevel_of
from galley_server.mcp.strict import Refusal, read_message

MAX_CLIENTS = 128
MAX_IN_FLIGHT = 256
_MAX_INBOX = 64
_FAREWELL_S = 1.0

_log = logging.getLogger(__name__)


class SocketEndpoint:
    """Serves every connection to the socket. `idle` is set while no client is connected."""

    def __init__(self, server: MCPServer[Any], path: Path) -> None:
        self._server = server
        self._path = path
        self._pipes: set[Pipe] = set()
        self._listener: asyncio.Server | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._lifespan_state: Any = None
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def clients(self) -> int:
        return len(self._pipes)

    @classmethod
    @asynccontextmanager
    async def open(cls, server: MCPServer[Any], path: Path) -> AsyncIterator[Self]:
        """Listen on `path`, whose directory must be ours alone. Leaving ends every connection."""
        endpoint = cls(server, path)
        lowlevel = lowlevel_of(server)
        with closing(_bind(path)) as listening:
            async with lowlevel.lifespan(lowlevel) as state, asyncio.TaskGroup() as tasks:
                endpoint._lifespan_state = state
                endpoint._tasks = tasks
                loop = asyncio.get_running_loop()
                endpoint._listener = await loop.create_unix_server(lambda: Pipe(endpoint), sock=listening)
                try:
                    yield endpoint
                finally:
                    await endpoint.close()

    def retire(self) -> bool:
        """Stop listening if nobody is connected: whether it did. A client that comes later starts a new server."""
        if self._pipes:
            return False
        self._stop_listening()
        return True

    def welcome(self, pipe: "Pipe", peer: socket.socket) -> bool:
        """Take a new connection, or say why not."""
        uid = peer_uid(peer)
        if not is_ours(uid):
            _log.warning("refused an MCP connection of uid %s", uid)
            return False
        if len(self._pipes) >= MAX_CLIENTS or self._tasks is None or self._listener is None:
            pipe.refuse(INTERNAL_ERROR, f"The Galley server has {MAX_CLIENTS} MCP clients; close one and try again.")
            return False
        self._pipes.add(pipe)
        self.idle.clear()
        self._tasks.create_task(self._serve(pipe), name="mcp client")
        return True

    async def _serve(self, pipe: "Pipe") -> None:
        try:
            await Conversation(lowlevel_of(self._server), pipe, self._lifespan_state).run()
        except Exception:  # the task boundary: one broken conversation is not the end of the others
            _log.exception("an MCP connection failed")
        finally:
            pipe.close()
            self._pipes.discard(pipe)
            if not self._pipes:
                self.idle.set()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Stop listening, answer what is under way, and hang up on everybody. May be called early; again is harmless.

        To be awaited before the HTTP endpoint's: that one ends all `subscriptions/listen` streams with a result, on
        which a client subscribes again at once. The shim instead keeps the streams of its client for the next server.
        """
        self._stop_listening()
        for pipe in list(self._pipes):
            pipe.end_input()
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self.idle.wait()
        except TimeoutError:
            for pipe in list(self._pipes):
                pipe.abort()


class Pipe(asyncio.Protocol):
    """One connection, as the pair of message streams that the SDK's dispatcher wants.

    Its own class rather than `stdio_server`'s tasks and queues: one task hop per message less, bounded lines, and a
    mistake is answered instead of dropped.
    """

    def __init__(self, endpoint: SocketEndpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._lines = LineReader(MAX_CLIENT_LINE)
        self._inbox: deque[bytes | TooLong] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._ended = False
        self._farewell = False
        self._listens: set[RequestId] = set()
        self._reading = True
        self._writable = True
        # Ids of our own requests differ from server to server, so that a client's late answer to a question of the
        # last one is never taken for an answer to a question of this one.
        self._nonce = secrets.token_hex(4)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's
        if not self._endpoint.welcome(self, transport.get_extra_info("socket")):
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._inbox.extend(self._lines.feed(data))
        if len(self._inbox) > _MAX_INBOX and self._reading and self._transport is not None:
            self._transport.pause_reading()
            self._reading = False
        self._wake_reader()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake_reader()
        return True  # answers may still be on their way out; _serve closes

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._inbox.clear()
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)
        self._writers.clear()

    # Called by the endpoint.

    def end_input(self) -> None:
        """Take no more messages; what is under way is answered by the dispatcher as it stops."""
        self._farewell = True
        self._inbox.clear()
        self._ended = True
        self._wake_reader()

    def refuse(self, code: int, message: str) -> None:
        self._put(JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=message)))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # The stream of messages from the client.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        while True:
            while self._inbox:
                message = self._read(self._inbox.popleft())
                if message is not None:
                    return SessionMessage(message)
            if self._ended:
                raise StopAsyncIteration
            if not self._reading and self._transport is not None:
                self._transport.resume_reading()
                self._reading = True
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    async def receive(self) -> SessionMessage:
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    # The stream of messages to the client.

    async def send(self, item: SessionMessage, /) -> None:
        if self._transport is None or self._transport.is_closing():
            raise anyio.ClosedResourceError
        outgoing = self._outgoing(item.message)
        if isinstance(outgoing, JSONRPCResponse):
            self._listens.discard(outgoing.id)
        if outgoing is not None:
            self._put(outgoing)
        if not self._writable:
            writer = asyncio.get_running_loop().create_future()
            self._writers.append(writer)
            await writer

    async def aclose(self) -> None:
        """The dispatcher closes both streams at its end; the connection outlives them by the last bytes written."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _read(self, line: bytes | TooLong) -> JSONRPCMessage | None:
        """The message in a line. What is none is answered here, since the dispatcher would drop it without a word."""
        try:
            if isinstance(line, TooLong):
                raise Refusal(INVALID_REQUEST, too_long_message(MAX_CLIENT_LINE, "client"), line.id)
            message = read_message(line)
        except Refusal as refusal:
            error = ErrorData(code=refusal.code, message=refusal.message)
            self._put(JSONRPCError(jsonrpc="2.0", id=refusal.id, error=error))
            return None
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            id_ = self._own_id(message.id)
            return None if id_ is None else message.model_copy(update={"id": id_})
        if message.method == "subscriptions/listen" and isinstance(message, JSONRPCRequest):
            self._listens.add(message.id)
        elif message.method == "notifications/cancelled" and message.params:
            cancelled = message.params.get("requestId")
            if isinstance(cancelled, int | str):
                self._listens.discard(cancelled)
        return message

    def _outgoing(self, message: JSONRPCMessage) -> JSONRPCMessage | None:
        if isinstance(message, JSONRPCRequest):
            return message.model_copy(update={"id": f"{self._nonce}-{message.id}"})
        if isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled" and message.params:
            params = {**message.params, "requestId": f"{self._nonce}-{message.params.get('requestId')}"}
            return message.model_copy(update={"params": params})
        if isinstance(message, JSONRPCError) and self._farewell and message.error.code == CONNECTION_CLOSED:
            if message.id in self._listens:
                return None  # the stream goes on with the next server
            return message.model_copy(update={"error": ErrorData(code=INTERNAL_ERROR, message=SHUTTING_DOWN)})
        return message

    def _own_id(self, id_: RequestId | None) -> int | None:
        nonce, _, number = str(id_).partition("-")
        return int(number) if nonce == self._nonce and number.isdecimal() else None

    def _put(self, message: JSONRPCMessage) -> None:
        if self._transport is None:
            return
        try:
            line = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
            if len(line) > MAX_SERVER_LINE:
                line = _sorry(message, f"{too_long_message(MAX_SERVER_LINE, 'server')} Ask for less at once.")
        except ValueError:
            _log.exception("an MCP answer could not be written as JSON")
            line = _sorry(message, "The answer could not be written as JSON.")
        self._transport.write(line + b"\n")


class Conversation:
    """One client's messages, each served in the era it is written in.

    The SDK's own loop settles on an era at the first request and refuses the other one from then on; clients in the
    field probe with `server/discover` and then `initialize` on the same pipe.
    """

    def __init__(self, server: Server[Any], pipe: Pipe, lifespan_state: Any) -> None:
        # `initialize` is handled before the next message is read, so that a client may send both at once.
        self._dispatcher: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(
            pipe, pipe, inline_methods=frozenset({"initialize"})
        )
        self._connection = Connection.for_loop(self._dispatcher)
        self._legacy = ServerRunner(server, self._connection, lifespan_state)
        self._modern = modern_on_request(server, lifespan_state)
        self._in_flight = 0

    async def run(self) -> None:
        try:
            await self._dispatcher.run(self._on_request, self._legacy.on_notify)
        finally:
            await aclose_shielded(self._connection)

    async def _on_request(
        self, dctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if self._in_flight >= MAX_IN_FLIGHT:
            raise MCPError(INTERNAL_ERROR, f"{MAX_IN_FLIGHT} requests of this connection are under way; wait for some.")
        self._in_flight += 1
        try:
            if method == "initialize" or not is_modern(params):
                return await self._legacy.on_request(dctx, method, params)
            route = classify_inbound_request({"method": method, "params": params})
            if isinstance(route, InboundLadderRejection):
                raise MCPError(route.code, route.message, route.data)
            return await self._modern(dctx, method, params)
        finally:
            self._in_flight -= 1


def _sorry(message: JSONRPCMessage, why: str) -> bytes:
    """What goes out in place of a message that cannot."""
    if isinstance(message, JSONRPCResponse | JSONRPCError):
        error = ErrorData(code=INTERNAL_ERROR, message=why)
        return JSONRPCError(jsonrpc="2.0", id=message.id, error=error).model_dump_json(exclude_unset=True).encode()
    return b""  # nobody waits for a notification; a blank line says nothing


def _bind(path: Path) -> socket.socket:
    require_private(path.parent)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.exists():
            _remove_stale(path)
        listening.bind(str(path))
        os.chmod(path, 0o600)
    except OSError as error:
        listening.close()
        raise ConfigError(f"The MCP socket {path} cannot be made: {error.strerror}.") from error
    except ConfigError:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    """A server that was killed leaves its socket behind. One that answers must not lose it to us."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"Another Galley server answers on {path}: stop it, or use another GALLEY_HOME.")
