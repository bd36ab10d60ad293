"""Request bodies as strict JSON. No I/O here.

Python's own parser is too kind for an edge: it takes NaN, lets the last of two equal keys win and stops nesting only
at the interpreter's limit. What passes here is JSON that every other parser reads the same way.
"""

import json
from collections.abc import Iterator
from typing import Final, NoReturn, TypeVar

from pydantic import BaseModel, JsonValue

from galley_server.errors import InvalidRequest
from galley_server.wire.validation import parse, shown

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH: Final = 64


def decode(raw: bytes) -> JsonValue:
    """Return the value of a JSON text, or raise InvalidRequest."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from None
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        _too_deep()
    except ValueError as error:
        # An integer of more digits than the interpreter converts.
        raise InvalidRequest(f"the body is not valid JSON: {str(error).partition(';')[0]}") from None
    # Most bodies have fewer brackets than levels allowed, so most need no walk.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        _too_deep()
    if b"\\u" in raw:
        _refuse_surrogates(value)
    return value


def read(model: type[M], raw: bytes) -> M:
    """Read a JSON object as `model`, which says itself what is wrong with its fields."""
    value = decode(raw)
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {_kind(value)}, not a JSON object")
    return parse(model, raw)


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(f"the body is not valid JSON: the key {shown(name)} appears twice in one object")
            seen.add(name)
    return found


def _constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body is not valid JSON: {name} is not a JSON number")


def _too_deep() -> NoReturn:
    raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep")


def _deeper_than(value: JsonValue, depth: int) -> bool:
    level = [value]
    while level and depth:
        level = [child for container in level for child in _children(container)]
        depth -= 1
    return bool(level)


def _children(value: JsonValue) -> Iterator[JsonValue]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (child for child in inside if isinstance(child, dict | list))


def _refuse_surrogates(value: JsonValue) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the body has half of a surrogate pair (\\ud800 to \\udfff): it is not text") from None


def _kind(value: JsonValue) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
