"""From what pydantic finds wrong to the one refusal the caller reads. No I/O here.

The sentence is built as the official API builds it: where (`events.0.content.1.type`), what should be there, and what
was there, cut short, and left out where it may be a secret.
"""

import json
import re
from collections.abc import Mapping
from typing import Final, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from galley_server.errors import InvalidRequest
from galley_server.wire.union import MARK, REFUSED

M = TypeVar("M", bound=BaseModel)

_SHOWN: Final = 80
_REPORTED: Final = 3
_SECRET: Final = re.compile(r"token|secret|passw|api_?key|authoriz|credential|cookie", re.IGNORECASE)

# What pydantic says in Python's words, in the words of JSON.
_WORDS: Final[Mapping[str, str]] = {
    "missing": "Field required",
    "tuple_type": "Input should be a valid array",
    "list_type": "Input should be a valid array",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "none_required": "Input should be null",
}


class RuleBroken(ValueError):
    """A rule between fields is broken. `path` leads from the model that states the rule to the field to blame."""

    def __init__(self, message: str, *path: str | int, code: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.code = code


def parse(model: type[M], raw: bytes) -> M:
    """Read a JSON text as `model`; nothing is converted from one type to another."""
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise refusal(error) from None


def take(model: type[M], fields: Mapping[str, object]) -> M:
    """Build `model` from values that are already of the right types (a query string that was read, a tool's input)."""
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise refusal(error) from None


def refusal(error: ValidationError) -> InvalidRequest:
    """Turn everything pydantic found into one error; the first findings speak, the others are counted."""
    details = _own(error.errors(include_url=False))
    lines = list(dict.fromkeys(_sentence(detail) for detail in details))
    more = len(lines) - _REPORTED
    message = "; ".join(lines[:_REPORTED]) + (f"; and {more} more" if more > 0 else "")
    codes = (broken.code for detail in details if (broken := _broken(detail)) is not None)
    return InvalidRequest(message, error_code=next((code for code in codes if code), None))


def _own(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the claims that an array is too short, made only because its items were wrong."""
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(other["loc"][: len(detail["loc"])] == detail["loc"] for other in details if other is not detail)
    ]


def shown(value: object) -> str:
    """Write a value in as much JSON as fits in half a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and "'" not in value:
        text = f"'{text[1:-1]}'"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _sentence(detail: ErrorDetails) -> str:
    kind = detail["type"]
    steps = [step for step in detail["loc"] if not str(step).startswith((MARK, REFUSED))]
    broken = _broken(detail)
    if broken is not None:
        return _at([*steps, *broken.path], str(broken))
    message = _WORDS.get(kind) or detail["msg"]
    if kind == "json_invalid":
        return f"The request body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}"
    if kind == "union_tag_not_found":
        return _at([*steps, _told_by(detail)], _WORDS["missing"])
    if kind == "union_tag_invalid":
        return _at([*steps, _told_by(detail)], _wrong_type(detail))
    if steps and steps[-1] == "[key]":
        steps, message = steps[:-1], re.sub("^(String|Input) should", "Key should", message)
    message = re.sub("^(Tuple|List)", "Array", message).replace(" after validation", "")
    return _at(steps, message + _got(kind, steps, detail["input"]))


def _broken(detail: ErrorDetails) -> RuleBroken | None:
    error = detail.get("ctx", {}).get("error")
    return error if isinstance(error, RuleBroken) else None


def _at(steps: list[str | int], message: str) -> str:
    where = ".".join(text if len(text) <= _SHOWN else text[:_SHOWN] + "…" for text in map(str, steps))
    return f"{where}: {message}" if where else message


def _told_by(detail: ErrorDetails) -> str:
    """The field that tells the members of the union apart."""
    return str(detail["ctx"]["discriminator"]).strip("'").removesuffix("()")


def _wrong_type(detail: ErrorDetails) -> str:
    found = detail["ctx"]["tag"].removeprefix(MARK)
    expected = [f"'{tag}'" for tag in re.findall(MARK + "([^']+)", detail["ctx"]["expected_tags"])]
    known = [tag for tag in expected if tag not in ("'<string>'", "'<object>'")]
    choice = known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"
    return f"Input should be {choice} (got {shown(found)})"


def _got(kind: str, steps: list[str | int], value: JsonValue) -> str:
    # A refusal says all there is to say; an absent value cannot be shown.
    if kind in ("missing", "refused"):
        return ""
    if any(_SECRET.search(str(step)) for step in steps):
        return ""
    if isinstance(value, str) and ("@" in value or "?" in value) and "://" in value:
        return ""  # a URL may carry a password or a key
    if kind == "string_too_long" and isinstance(value, str):
        return f" (got {len(value)})"
    if kind in ("too_long", "too_short"):
        return ""  # pydantic's sentence ends in the count
    return f" (got {shown(value)})"
