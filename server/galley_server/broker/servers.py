"""The MCP servers of sessions, asked through the MCP door with the session's own grant."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args
from urllib.parse import quote

import httpcore2

from galley_server.broker import mcp_wire
from galley_server.broker.client import ProxyClient
from galley_server.broker.content import outcome_of, tools_of
from galley_server.broker.credentials import unreachable_credentials
from galley_server.broker.grants import Grant, Grants
from galley_server.broker.mcp_wire import Failure
from galley_server.errors import RequestError
from galley_server.hands.access import Access, ServerAccess
from galley_server.hands.mcp import MOST
from galley_server.hands.port import CredentialFault, Reach, ServerFault, ToolCall, ToolOutcome
from galley_server.hands.results import failed, interrupted, not_run
from galley_server.log.internal import McpListing, McpTool
from galley_server.mcp.sse import EventTooLong, SSEReader
from galley_server.wire.base import JSON

REACH_S: Final = 15.0
"""How long the start of a turn waits for servers. One that takes longer is tried again at the next turn."""

CALL_S: Final = 900.0
"""The door's own bound on one call."""

_CONNECT_S: Final = 5.0
_LONGEST_ANSWER: Final = 32 << 20
_PAGES: Final = 32

Kind = Literal["mcp_connection_failed_error", "mcp_authentication_failed_error"]

logger: Final = logging.getLogger(__name__)


class _Unsent(Exception):
    """The request certainly did not reach the door."""


class _Refused(Exception):
    """The door does not take the grant: nothing was passed on."""


class DoorServers:
    """Implements ToolServers."""

    def __init__(self, client: ProxyClient, grants: Grants) -> None:
        self._client = client
        self._grants = grants

    async def reach(self, session_id: str, access: Access) -> Reach:
        faults: list[ServerFault | CredentialFault] = [
            ServerFault(server.name, f"The MCP server {server.name!r} was not asked: {server.blocked}.")
            for server in access.servers
            if server.blocked is not None
        ]
        wanted = [server for server in access.servers if server.blocked is None and not server.enabled.empty]
        listings: list[McpListing] = []
        try:
            grant = await self._grants.of(session_id, access)
            faults += await unreachable_credentials(self._client, access)
        except RequestError as error:
            return Reach((), (*faults, *(_unreachable(server, error.message) for server in wanted)))
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._list(session_id, grant, server)) for server in wanted]
        for task in asked:
            found = task.result()
            if isinstance(found, McpListing):
                listings.append(found)
            else:
                faults.append(found)
        return Reach(tuple(listings), tuple(faults))

    async def call(
        self, session_id: str, access: Access, call: ToolCall, schema: Mapping[str, JSON] | None
    ) -> ToolOutcome:
        server = access.server(call.server or "")
        if server is None or server.blocked is not None:
            reason = "it is not one of this agent's" if server is None else server.blocked
            return failed(f"The MCP server {call.server!r} cannot be reached: {reason}.")
        try:
            return await self._call(session_id, access, server, call, schema)
        except RequestError as error:
            return not_run(error.message)
        except Exception:
            # The boundary of a call: whatever nobody foresaw, the model gets an answer and the session goes on.
            logger.exception("the MCP call %s failed", call.event_id)
            return interrupted("the server failed unexpectedly; its log says how")

    async def _call(
        self,
        session_id: str,
        access: Access,
        server: ServerAccess,
        call: ToolCall,
        schema: Mapping[str, JSON] | None,
    ) -> ToolOutcome:
        body = mcp_wire.body("tools/call", {"name": call.name, "arguments": dict(call.input)})
        headers = [*mcp_wire.call_headers(call.name, schema, call.input), (b"galley-event-id", call.event_id.encode())]
        for attempt in range(2):
            grant = await self._grants.of(session_id, access)
            try:
                async with asyncio.timeout(CALL_S):
                    answer = await self._post(session_id, grant, server, headers, body)
            except _Refused:
                # Nothing was passed on, so a second request with another grant is the first that counts.
                if attempt or not await self._grants.refused(session_id, grant):
                    return failed(f"The vault proxy does not take this session's grant for {server.name!r} any more.")
            except _Unsent as error:
                return not_run(str(error))
            except TimeoutError:
                return interrupted(f"{server.name} did not answer within {CALL_S:.0f} s")
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, EventTooLong) as error:
                return interrupted(f"the answer of {server.name} was lost ({type(error).__name__})")
            else:
                return _outcome(server, answer)
        raise AssertionError("unreachable")

    async def _list(self, session_id: str, grant: Grant, server: ServerAccess) -> McpListing | ServerFault:
        tools: list[McpTool] = []
        cursor: JSON = None
        try:
            async with asyncio.timeout(REACH_S):
                for _ in range(_PAGES):
                    params: dict[str, JSON] = {} if cursor is None else {"cursor": cursor}
                    answer = await self._post(
                        session_id, grant, server, mcp_wire.headers("tools/list"), mcp_wire.body("tools/list", params)
                    )
                    if isinstance(answer, Failure):
                        return _fault(server, answer)
                    tools += tools_of(answer.get("tools"))
                    cursor = answer.get("nextCursor")
                    if not isinstance(cursor, str) or len(tools) > MOST:
                        break
        except TimeoutError:
            return _unreachable(server, f"it did not list its tools within {REACH_S:.0f} s")
        except _Refused:
            return _unreachable(server, "the vault proxy does not take this session's grant")
        except (_Unsent, RequestError) as error:
            return _unreachable(server, str(error))
        except Exception:
            # The boundary of a question to one server: the others, and the session, go on.
            logger.exception("the tools of an MCP server of %s could not be listed", session_id)
            return _unreachable(server, "this server failed; its log says how")
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, EventTooLong) as error:
            return _unreachable(server, f"the connection to the vault proxy was lost ({type(error).__name__})")
        # The order of a list is the server's whim; that of a request decides what the model's cache is good for.
        unique = {tool.name: tool for tool in tools}
        return McpListing(
            server=server.name, url=server.url, tools=tuple(sorted(unique.values(), key=lambda tool: tool.name)[:MOST])
        )

    async def _post(
        self,
        session_id: str,
        grant: Grant,
        server: ServerAccess,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
    ) -> Mapping[str, Any] | Failure:
        """One exchange with the door. Raises _Unsent, _Refused, what httpcore2 raises, EventTooLong, Unavailable."""
        await self._client.ready()
        sent = [
            (b"host", b"localhost"),
            (b"content-length", str(len(body)).encode()),
            (b"authorization", f"Bearer {grant.token.reveal()}".encode()),
            *headers,
        ]
        url = f"http://localhost/mcp/{quote(server.door, safe='')}"
        patience = {"connect": _CONNECT_S, "read": CALL_S, "write": _CONNECT_S, "pool": _CONNECT_S}
        try:
            async with (
                self._client.tunnel(session_id) as door,
                door.stream("POST", url, headers=sent, content=body, extensions={"timeout": patience}) as got,
            ):
                if got.status == 401:
                    raise _Refused
                return await _read(got)
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
            raise _Unsent("the vault proxy does not answer; try again") from None


async def _read(response: httpcore2.Response) -> Mapping[str, Any] | Failure:
    """The one answer of an exchange, in either of the two forms it may have."""
    kind = next((value for name, value in response.headers if name.lower() == b"content-type"), b"")
    size = 0
    whole = bytearray()
    events = SSEReader(_LONGEST_ANSWER) if kind.startswith(b"text/event-stream") else None
    async for chunk in response.aiter_stream():
        if events is None:
            whole += chunk
            size += len(chunk)
            if size > _LONGEST_ANSWER:
                return Failure(0, f"the answer is larger than {_LONGEST_ANSWER >> 20} MiB")
            continue
        for data in events.feed(chunk):
            found = mcp_wire.answer(data)
            if found is not None:
                return found
    if events is not None:
        raise httpcore2.RemoteProtocolError("the stream ended without an answer")
    return mcp_wire.answer(bytes(whole)) or Failure(0, f"an answer of HTTP status {response.status} without a message")


def _outcome(server: ServerAccess, answer: Mapping[str, Any] | Failure) -> ToolOutcome:
    if isinstance(answer, Failure):
        if answer.type is None:
            return failed(f"{server.name}: {answer.message}")
        return (not_run if answer.nothing_done else interrupted)(f"{server.name}: {answer.message}")
    if answer.get("resultType", "complete") != "complete":
        return failed(f"{server.name} asks for something that this agent cannot give ({answer.get('resultType')}).")
    return outcome_of(answer)


def _fault(server: ServerAccess, failure: Failure) -> ServerFault:
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((kind for kind in kinds if kind == failure.type), kinds[0])
    return ServerFault(server.name, f"The MCP server {server.name!r} cannot be used: {failure.message}.", kind)


def _unreachable(server: ServerAccess, reason: str) -> ServerFault:
    return ServerFault(server.name, f"The MCP server {server.name!r} cannot be reached: {reason}.")
