"""Strict reading of one JSON-RPC message, before the SDK sees it. No I/O.

The SDK's own readers take the last of two equal keys, NaN, and lone surrogates, and answer some mistakes with a dump of
their validator, others not at all. Here every mistake gets one sentence, and the id of the request if it has one.
"""

import json
import math
import re

from mcp_types import INVALID_REQUEST, PARSE_ERROR, JSONRPCMessage, RequestId, jsonrpc_message_adapter
from pydantic import ValidationError

MAX_DEPTH = 64

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"{}[]")))
_OPENING = frozenset(b"{[")


class Refusal(Exception):
    """Why a message cannot be served, as the fields of a JSON-RPC error."""

    def __init__(self, code: int, message: str, id_: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id_


def read_message(data: bytes) -> JSONRPCMessage:
    """The message in `data`; raises Refusal."""
    value = _read_json(data)
    if isinstance(value, list):
        raise Refusal(INVALID_REQUEST, "The message is an array: MCP has no batches, send one message at a time.")
    if not isinstance(value, dict):
        raise Refusal(INVALID_REQUEST, "The message is not a JSON object.")
    id_ = value.get("id")
    if "method" in value and "id" in value and (isinstance(id_, bool) or not isinstance(id_, int | str)):
        raise Refusal(INVALID_REQUEST, "The request's id is neither a string nor an integer.")
    known = id_ if isinstance(id_, int | str) and not isinstance(id_, bool) else None
    try:
        return jsonrpc_message_adapter.validate_python(value, by_name=False)
    except ValidationError:
        raise Refusal(INVALID_REQUEST, _what_is_wrong(value), known) from None


def _read_json(data: bytes) -> object:
    if _deeper_than(data, MAX_DEPTH):
        raise Refusal(PARSE_ERROR, f"Parse error: the JSON is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written out again
    except UnicodeError:
        raise Refusal(PARSE_ERROR, "Parse error: the text is not valid UTF-8.") from None
    except json.JSONDecodeError as error:
        raise Refusal(PARSE_ERROR, f"Parse error: {error.msg} at character {error.pos}.") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits
        raise Refusal(PARSE_ERROR, "Parse error: a number is out of range.") from None
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refusal(PARSE_ERROR, "Parse error: an object has the same key twice.")
    return members


def _no_constant(name: str) -> float:
    raise Refusal(PARSE_ERROR, f"Parse error: {name} is not JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Refusal(PARSE_ERROR, "Parse error: a number is out of range.")
    return number


def _deeper_than(data: bytes, limit: int) -> bool:
    if data.count(b"{") + data.count(b"[") <= limit:
        return False
    depth = 0
    for byte in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        depth += 1 if byte in _OPENING else -1
        if depth > limit:
            return True
    return False


def _what_is_wrong(value: dict[str, object]) -> str:
    if value.get("jsonrpc") != "2.0":
        return 'The message lacks "jsonrpc": "2.0".'
    if "method" not in value:
        return "The message is neither a request, nor a notification, nor an answer."
    if not isinstance(value["method"], str):
        return "The message's method is not a string."
    return "The message's params are not an object."
