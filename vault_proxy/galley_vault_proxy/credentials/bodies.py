"""Bodies of the vaults API: read strictly, refused in a sentence that names the field and, unless it may be a secret,
what was there. No I/O here.

A union's member is told by `type`; its tag is marked, so that a sentence leads to the field and not through the tag.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.http.validation import RuleBroken, decode

M = TypeVar("M", bound=BaseModel)

_MARK: Final = "type="
_SHOWN: Final = 80
_REPORTED: Final = 3
# Fields whose value is never repeated. What may be shown is listed and not what may not: a secret may come under any
# name, a mistyped one above all.
_PLAIN: Final = frozenset({"type", "limit", "page", "include_archived", "header", "body", "display_name"})
_WORDS: Final[Mapping[str, str]] = {
    "missing": "Field required",
    "extra_forbidden": "Unknown field",
    "tuple_type": "Input should be a valid array",
    "list_type": "Input should be a valid array",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
}
# Messages of these kinds are made of the rule alone, never of what was given.
_SAFE: Final = re.compile(
    r"string_(type|too_short|too_long)|int_type|bool_type|literal_error|greater_than_equal|less_than_equal"
    r"|too_(short|long)|timezone_aware"
)


@dataclass(frozen=True, slots=True)
class ByType:
    """`Annotated[A | B, ByType()]`: the member is the one whose `type` the input names."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[str, CoreSchema] = {}
        for member in get_args(source):
            schema = handler.generate_schema(member)
            choices.update({_MARK + tag: schema for tag in get_args(member.model_fields["type"].annotation)})
        return core_schema.tagged_union_schema(choices, _tag)


def _tag(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return _MARK + str(getattr(value, "type", ""))
    kind = value.get("type") if isinstance(value, Mapping) else None
    return None if kind is None else _MARK + str(kind)


def read(model: type[M], raw: bytes) -> M:
    """Read a JSON object as `model`. Raises InvalidRequest."""
    if not isinstance(decode(raw), dict):
        raise InvalidRequest("the body is not a JSON object")
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Outside of the handler: the error that leaves must not drag the input along as its context.
    lines = list(dict.fromkeys(_sentence(detail) for detail in details))
    more = len(lines) - _REPORTED
    raise InvalidRequest("; ".join(lines[:_REPORTED]) + (f"; and {more} more" if more > 0 else ""))


def shown(value: object) -> str:
    """As much of a value as fits in half a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and "'" not in value:
        text = f"'{text[1:-1]}'"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _sentence(detail: ErrorDetails) -> str:
    kind = detail["type"]
    steps = [step for step in detail["loc"] if not str(step).startswith(_MARK)]
    broken = detail.get("ctx", {}).get("error")
    if isinstance(broken, RuleBroken):
        return _at([*steps, *broken.path], str(broken))
    if kind == "union_tag_not_found":
        found = detail["input"]
        return (
            _at([*steps, "type"], "Field required") if isinstance(found, Mapping) else _at(steps, _WORDS["dict_type"])
        )
    if kind == "union_tag_invalid":
        return _at([*steps, "type"], _wrong_type(detail))
    message = _WORDS.get(kind) or (detail["msg"] if _SAFE.fullmatch(kind) else "Input is not valid")
    return _at(steps, re.sub("^(Tuple|List)", "Array", message) + _got(kind, steps, detail["input"]))


def _wrong_type(detail: ErrorDetails) -> str:
    expected = [f"'{tag}'" for tag in re.findall(_MARK + "([^']+)", detail["ctx"]["expected_tags"])]
    choice = expected[0] if len(expected) == 1 else f"{', '.join(expected[:-1])} or {expected[-1]}"
    return f"Input should be {choice} (got {shown(detail['ctx']['tag'].removeprefix(_MARK))})"


def _got(kind: str, steps: list[str | int], value: object) -> str:
    if kind == "missing" or not steps or steps[-1] not in _PLAIN or isinstance(value, Mapping | list):
        return ""
    if kind == "string_too_long" and isinstance(value, str):
        return f" (got {len(value)})"
    return f" (got {shown(value)})"


def _at(steps: list[str | int], message: str) -> str:
    where = ".".join(text if len(text) <= _SHOWN else text[:_SHOWN] + "…" for text in map(str, steps))
    return f"{where}: {message}" if where else message
