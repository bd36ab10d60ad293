"""Which headers pass the door, in which direction, and what the routing headers must agree with. No I/O.

Lists of what passes, not of what does not: a header that somebody invents tomorrow to mean who is asking, or where
a request came from, is not the sandbox's to send.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from galley_vault_proxy.mcp_door.jsonrpc import Refusal, RpcMessage
from galley_vault_proxy.mcp_door.wire import (
    HEADER_MISMATCH,
    LAST_EVENT,
    META_VERSION,
    METHOD,
    NAME,
    NAMED_BY,
    VERSION,
    Era,
)

RawHeaders: TypeAlias = Sequence[tuple[bytes, bytes]]

_UP: Final = frozenset(
    {b"accept", b"accept-language", b"content-type", LAST_EVENT, b"traceparent", b"tracestate", b"user-agent"}
)
_DOWN: Final = frozenset({b"allow", b"cache-control", b"content-type", b"retry-after"})
_MCP: Final = b"mcp-"
_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=")
_SAFE: Final = re.compile(r"[\x20-\x7e]*")
_ONCE: Final = frozenset({LAST_EVENT, b"authorization", b"content-type", b"host", b"origin"})


def upward(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """What a client sent that the server is to see. Every `Mcp-` header is, known or not."""
    return [(name, value) for name, value in headers if name in _UP or name.startswith(_MCP)]


def downward(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a server sent that the client is to see."""
    lowered = ((name.lower(), value) for name, value in headers)
    return [(name, value) for name, value in lowered if name in _DOWN or name.startswith(_MCP)]


def single(headers: RawHeaders) -> dict[bytes, str]:
    """The headers that must not be there twice. Raises Refusal: a reader of the first and one of the last disagree."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name not in _ONCE and not name.startswith(_MCP):
            if name == b"connection" and _MCP in value.lower():
                raise Refusal(HEADER_MISMATCH, "the Connection header names an Mcp- header")
            continue
        if name in found:
            raise Refusal(HEADER_MISMATCH, f"the header {name.decode('latin-1')} is there more than once")
        found[name] = value.decode("latin-1").strip(" \t")
    return found


def check_routing(given: Mapping[bytes, str], message: RpcMessage, era: Era) -> None:
    """Raise Refusal (-32020) unless the routing headers say what the body says.

    Whoever stands behind the door may route by them. Of the older era they are not asked for; if they are there all
    the same, they must be true.
    """
    if message.kind == "answer":
        return
    # Without the envelope of the modern era its server says what is wrong with it.
    required = era == "modern" and message.kind == "request" and META_VERSION in message.meta
    _agree("Mcp-Method", given.get(METHOD), message.method, message, required=required)
    if required:
        _agree("MCP-Protocol-Version", given.get(VERSION), message.meta[META_VERSION], message, required=True)
    key = NAMED_BY.get(message.method)
    named = message.params.get(key) if key is not None else None
    if named is not None:
        _agree("Mcp-Name", decoded(given.get(NAME)), named, message, required=required)


def _agree(header: str, said: str | None, meant: object, message: RpcMessage, *, required: bool) -> None:
    if said is None and not required:
        return
    if said != meant:
        raise Refusal(HEADER_MISMATCH, f"the {header} header does not say what the body says", message.id)


def param_headers(schema: object, arguments: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """The headers that repeat arguments, as the tool's schema asks for them with `x-mcp-header`."""
    found: list[tuple[bytes, bytes]] = []
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for key, inner in properties.items() if isinstance(properties, dict) else ():
        value = arguments.get(key)
        if value is None or not isinstance(inner, dict):
            continue
        token = inner.get("x-mcp-header")
        if isinstance(value, dict):
            found += param_headers(inner, value)
        elif isinstance(token, str) and token.isascii() and isinstance(value, str | int | bool):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found.append((f"mcp-param-{token}".lower().encode(), encoded(text).encode("latin-1")))
    return found


def check_params(given: RawHeaders, schema: object, arguments: Mapping[str, Any]) -> None:
    """Raise Refusal (-32020) unless the headers that repeat arguments say what these are. Others are anybody's."""
    meant = {name: decoded(value.decode("latin-1")) for name, value in param_headers(schema, arguments)}
    said = {name: decoded(value.decode("latin-1")) for name, value in given}
    for name in _param_names(schema):
        if said.get(name) != meant.get(name):
            text = f"the {name.decode()} header does not say what the arguments say"
            raise Refusal(HEADER_MISMATCH, text)


def _param_names(schema: object) -> Iterator[bytes]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for inner in properties.values() if isinstance(properties, dict) else ():
        token = inner.get("x-mcp-header") if isinstance(inner, dict) else None
        if isinstance(token, str) and token.isascii():
            yield f"mcp-param-{token}".lower().encode()
        yield from _param_names(inner)


def encoded(value: str) -> str:
    """A value as a header carries it."""
    if _SAFE.fullmatch(value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{b64encode(value.encode()).decode()}?="


def decoded(value: str | None) -> str | None:
    """What a header's value means; an impossible text for one that means nothing, so that it agrees with nothing."""
    found = _SENTINEL.fullmatch(value) if value is not None else None
    if found is None:
        return value
    try:
        raw = b64decode(found[1], validate=True)
        if b64encode(raw).decode() == found[1]:
            return raw.decode()
    except (Error, UnicodeError):
        pass
    return "\0"
