"""Reading and writing JSON-RPC messages. No I/O.

What the door decides on must be what the server reads, so whatever two parsers may read in two ways is refused: equal
keys, NaN, half a surrogate pair, arrays of messages. The raw bytes of a message that passes are forwarded as they are.
"""

import json
import math
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from galley_vault_proxy.mcp_door.wire import INVALID_REQUEST, PARSE_ERROR

MAX_DEPTH: Final = 64

RequestId: TypeAlias = str | int
Kind: TypeAlias = Literal["request", "notification", "answer"]
Object: TypeAlias = Mapping[str, Any]


class Refusal(Exception):
    """Why a message is not taken, as the fields of a JSON-RPC error."""

    def __init__(self, code: int, message: str, id_: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id_


@dataclass(frozen=True, slots=True)
class RpcMessage:
    """One message. `method` is empty for an answer, `id` None for a notification. `value` is the whole of it."""

    kind: Kind
    id: RequestId | None
    method: str
    params: Object
    value: Object

    @property
    def meta(self) -> Object:
        found = self.params.get("_meta")
        return found if isinstance(found, dict) else {}


def read_message(data: bytes) -> RpcMessage:
    """What a client sent. Raises Refusal."""
    value = _read(data)
    if isinstance(value, list):
        raise Refusal(INVALID_REQUEST, "the message is an array: MCP has no batches, send one message at a time")
    if not isinstance(value, dict):
        raise Refusal(INVALID_REQUEST, "the message is not a JSON object")
    return classify(value)


def classify(value: dict[str, Any]) -> RpcMessage:
    """Raises Refusal."""
    id_ = value.get("id")
    known = id_ if isinstance(id_, str | int) and not isinstance(id_, bool) else None
    if value.get("jsonrpc") != "2.0":
        raise Refusal(INVALID_REQUEST, 'the message lacks "jsonrpc": "2.0"', known)
    if "method" not in value:
        if ("result" in value) == ("error" in value) or "id" not in value:
            raise Refusal(INVALID_REQUEST, "the message is neither a request, nor a notification, nor an answer", known)
        return RpcMessage("answer", known, "", {}, value)
    method, params = value["method"], value.get("params", {})
    if not isinstance(method, str) or not method or len(method) > 256:
        raise Refusal(INVALID_REQUEST, "the message's method is not a string", known)
    if "result" in value or "error" in value:
        raise Refusal(INVALID_REQUEST, "the message is a request and an answer at once", known)
    if not isinstance(params, dict):
        raise Refusal(INVALID_REQUEST, "the message's params are not an object", known)
    if "id" not in value:
        return RpcMessage("notification", None, method, params, value)
    if known is None:
        raise Refusal(INVALID_REQUEST, "the request's id is neither a string nor an integer")
    return RpcMessage("request", known, method, params, value)


def read_from_server(data: bytes) -> Any:
    """What a server sent, as JSON. Raises ValueError.

    Equal keys are refused here too: a client that takes the first of two would see a list that nobody has checked.
    """
    try:
        return _FROM_SERVERS.decode(data.removeprefix(BOM_UTF8).decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def canonical_key(message: RpcMessage) -> str:
    """What a call is about, whatever id it has and whatever answers it brings."""
    about = {key: value for key, value in message.params.items() if key in ("name", "uri", "arguments")}
    return json.dumps([message.method, about], sort_keys=True)


def error_message(id_: RequestId | None, code: int, message: str, data: object = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": id_, "error": error}


def result_message(id_: RequestId | None, result: Object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


def _read(data: bytes) -> Any:
    try:
        value = _FROM_CLIENTS.decode(data.decode())
        if b"\\ud" in data or b"\\uD" in data:
            dump_strictly(value)
    except UnicodeError:
        raise Refusal(PARSE_ERROR, "parse error: the text is not valid Unicode") from None
    except json.JSONDecodeError as error:
        raise Refusal(PARSE_ERROR, f"parse error: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Refusal(PARSE_ERROR, f"parse error: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:  # an integer of thousands of digits
        raise Refusal(PARSE_ERROR, "parse error: a number is out of range") from None
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and deeper_than(value, MAX_DEPTH):
        raise Refusal(PARSE_ERROR, f"parse error: nested deeper than {MAX_DEPTH} levels")
    return value


def dump_strictly(value: object) -> bytes:
    """Raises UnicodeError for half a surrogate pair, which no two parsers treat alike."""
    return json.dumps(value, ensure_ascii=False).encode()


def deeper_than(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refusal(PARSE_ERROR, "parse error: an object has the same key twice")
    return members


def _unique_or_value_error(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same key twice")
    return members


def _no_constant(name: str) -> float:
    raise Refusal(PARSE_ERROR, f"parse error: {name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Refusal(PARSE_ERROR, "parse error: a number is out of range")
    return number


# Made once: making one takes as long as reading a small message.
_FROM_SERVERS: Final = json.JSONDecoder(object_pairs_hook=_unique_or_value_error)
_FROM_CLIENTS: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
