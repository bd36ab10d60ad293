"""Bodies as strict JSON, and what is wrong with one in words that name the field. No I/O here.

A refusal never repeats a value: bodies here may hold secrets, also under a name that was mistyped.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from galley_vault_proxy.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH: Final = 32
_SHOWN: Final = 80
_REPORTED: Final = 3

# What pydantic says in Python's words, in the words of JSON. None of these holds a value.
_WORDS: Final[Mapping[str, str]] = {
    "missing": "Field required",
    "extra_forbidden": "Unknown field",
    "tuple_type": "Input should be a valid array",
    "list_type": "Input should be a valid array",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "none_required": "Input should be null",
    "json_invalid": "The body is not valid JSON",
}
# Messages of these kinds are made of the rule alone, never of what was given.
_SAFE: Final = re.compile(
    r"string_(type|too_short|too_long)|int_(type|from_float)|bool_type|float_type|literal_error|enum"
    r"|greater_than(_equal)?|less_than(_equal)?|too_(short|long)|string_pattern_mismatch|finite_number"
)


class Strict(BaseModel):
    """Base of every body: nothing is converted, nothing unknown is taken, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class RuleBroken(ValueError):
    """A rule of ours is broken. The text is safe to show; `path` leads from the rule's model to the field to blame."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


def read(model: type[M], raw: bytes) -> M:
    """Read a JSON object as `model`. Raises InvalidRequest."""
    value = decode(raw)
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object")
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise refusal(error) from None


def take(model: type[M], fields: Mapping[str, object]) -> M:
    """Build `model` from values that are of the right types already (a query string that was read)."""
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise refusal(error) from None


def decode(raw: bytes) -> JsonValue:
    """Return the value of a JSON text that every parser reads alike: no doubled keys, no NaN, bounded depth."""
    try:
        value: JsonValue = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON (line {error.lineno} column {error.colno})") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise InvalidRequest("the body is not valid JSON: a number is too long") from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise _too_deep()
    return value


def refusal(error: ValidationError) -> InvalidRequest:
    """Everything pydantic found in one error; the first findings speak, the others are counted."""
    details = error.errors(include_url=False, include_input=False)
    lines = list(dict.fromkeys(_sentence(detail) for detail in details))
    more = len(lines) - _REPORTED
    return InvalidRequest("; ".join(lines[:_REPORTED]) + (f"; and {more} more" if more > 0 else ""))


def _sentence(detail: ErrorDetails) -> str:
    kind = detail["type"]
    steps = list(detail["loc"])
    broken = detail.get("ctx", {}).get("error")
    if isinstance(broken, RuleBroken):
        return _at([*steps, *broken.path], str(broken))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _at([*steps, str(detail["ctx"]["discriminator"]).strip("'")], _tags(detail))
    message = _WORDS.get(kind) or (detail["msg"] if _SAFE.fullmatch(kind) else "Input is not valid")
    return _at(steps, re.sub("^(Tuple|List)", "Array", message))


def _tags(detail: ErrorDetails) -> str:
    expected = detail["ctx"].get("expected_tags")
    return "Field required" if expected is None else f"Input should be one of {expected}"


def _at(steps: list[str | int], message: str) -> str:
    # Names of fields are shown: without them nobody finds the fault. A very long one is cut.
    where = ".".join(text if len(text) <= _SHOWN else text[:_SHOWN] + "…" for text in map(str, steps))
    return f"{where}: {message}" if where else message


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest("the body is not valid JSON: a key appears twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body is not valid JSON: {name} is not a JSON number")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep")


def _deeper_than(value: JsonValue, depth: int) -> bool:
    level = [value]
    while level and depth:
        level = [child for container in level for child in _children(container)]
        depth -= 1
    return bool(level)


def _children(value: JsonValue) -> Iterator[JsonValue]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (child for child in inside if isinstance(child, dict | list))
