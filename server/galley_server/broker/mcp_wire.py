"""Requests to the MCP door and what comes back, in the revision of 2026-07-28: no session, one POST per request. Pure.

The door bridges to servers of the older revisions, so this end needs no other. The `mcp` package's client is not used:
it takes apart what it does not know, and holds a task and a connection for each server; here a call is one request.
Source: the MCP specification 2026-07-28, basic/transports/streamable-http and server/tools.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp.shared.inbound import encode_header_value, mcp_param_headers, x_mcp_header_map

from galley_server import __version__
from galley_server.wire.base import JSON

VERSION: Final = "2026-07-28"
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "galley", "version": __version__},
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of the protocol. `type` is what the vault proxy says of it, if it could not have the server answer.

    `nothing_done`: the server certainly did nothing.
    """

    code: int
    message: str
    type: str | None = None
    nothing_done: bool = False


def body(method: str, params: Mapping[str, JSON]) -> bytes:
    """One request. Its id tells nothing: the answer comes on the same exchange."""
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": _META}}
    return json.dumps(message, separators=(",", ":")).encode()


def headers(method: str) -> list[tuple[bytes, bytes]]:
    """What the revision wants repeated in headers, for every request."""
    return [
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
        (b"mcp-protocol-version", VERSION.encode()),
        (b"mcp-method", method.encode()),
    ]


def call_headers(
    tool: str, schema: Mapping[str, JSON] | None, arguments: Mapping[str, JSON]
) -> list[tuple[bytes, bytes]]:
    """And for a tool call: its name, and the arguments that the tool's schema marks with `x-mcp-header`."""
    repeated = mcp_param_headers(x_mcp_header_map(schema), arguments) if schema is not None else {}
    return [
        *headers("tools/call"),
        (b"mcp-name", encode_header_value(tool).encode("ascii")),
        *((name.lower().encode("ascii"), value.encode("ascii")) for name, value in repeated.items()),
    ]


def answer(data: bytes) -> Mapping[str, Any] | Failure | None:
    """The result or the failure that a message holds; None for anything else, a notification above all."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return Failure(0, "the answer is not JSON")
    if not isinstance(message, dict) or "method" in message:
        return None
    if isinstance(result := message.get("result"), dict):
        return result
    error = message.get("error")
    if not isinstance(error, dict):
        return Failure(0, "the answer is neither a result nor an error")
    about = error.get("data")
    about = about if isinstance(about, dict) else {}
    code, kind = error.get("code"), about.get("type")
    return Failure(
        code if isinstance(code, int) else 0,
        str(error.get("message") or "the server gave no reason")[:2000],
        kind if isinstance(kind, str) else None,
        nothing_done=about.get("nothing_done") is True,
    )
