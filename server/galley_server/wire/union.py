"""Unions told apart by `type`, so that an error is about the member the caller meant. No I/O here.

pydantic's own discriminated unions put the tag into the location of an error, where it cannot be told from a field of
the same name (`{"type": "text", "text": 5}`). `ByType` marks its tags, and `validation` takes the marks out again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MARK: Final = "type="
"""Begins the steps of an error's location that are tags."""

REFUSED: Final = "refused="
"""Begins the tags of members that exist to be refused."""

_STRING: Final = MARK + "<string>"
_OBJECT: Final = MARK + "<object>"


@dataclass(frozen=True, slots=True)
class ByType:
    """`Annotated[A | B, ByType()]`: the member is the one whose `type` the input names.

    A member `str` or `Literal[...]` takes every string, one model without a `type` takes every object.
    `refused` names types that the official API knows and Galley does not, each with the sentence that says so.
    """

    refused: tuple[tuple[str, str], ...] = ()
    by: str = "type"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[str, CoreSchema] = {}
        for member in _members(source):
            schema = handler.generate_schema(member)
            choices.update(dict.fromkeys(_tags(member, self.by), schema))
        choices.update({REFUSED + name: _fail("refused", reason) for name, reason in self.refused})
        if not {_STRING, _OBJECT} & choices.keys():
            choices[_OBJECT] = _fail("model_type", "Input should be an object")
        return core_schema.tagged_union_schema(choices, _told_by(self.by, frozenset(choices)))


def _told_by(by: str, tags: frozenset[str]) -> Callable[[Any], str | None]:
    # An object of no kind (`{"id": ...}`) is told by being an object.
    by_kind = not tags <= {_STRING, _OBJECT}

    def tag(value: Any) -> str | None:
        if isinstance(value, str) and _STRING in tags:
            return _STRING
        if isinstance(value, BaseModel):
            value = {by: getattr(value, by, None)}
        if not isinstance(value, Mapping):
            return _OBJECT if _OBJECT in tags else _STRING
        if not by_kind:
            return _OBJECT
        kind = value.get(by)
        if kind is None:
            return None
        return REFUSED + str(kind) if REFUSED + str(kind) in tags else MARK + str(kind)

    # pydantic shows the name in its errors, and there the field is read from it.
    tag.__name__ = by
    return tag


def _members(source: Any) -> tuple[Any, ...]:
    # A Literal has arguments too, and a lone model has none.
    return get_args(source) if get_args(source) and get_origin(source) is not Literal else (source,)


def _tags(member: Any, by: str) -> list[str]:
    while get_origin(member) is Annotated:
        member = get_args(member)[0]
    if member is str or get_origin(member) is Literal:
        return [_STRING]
    kind = member.model_fields.get(by)
    return [_OBJECT] if kind is None else [MARK + tag for tag in get_args(kind.annotation)]


def _fail(kind: Literal["refused", "model_type"], message: str) -> CoreSchema:
    def fail(value: object) -> NoReturn:
        raise PydanticCustomError(kind, "{reason}", {"reason": message})

    return core_schema.no_info_before_validator_function(fail, core_schema.any_schema())
