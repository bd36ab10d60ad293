"""The response types of the official SDK, made strict: nothing is converted, and nothing they do not have may come.

The SDK's own models take whatever they get (`extra="allow"`, no validation on `construct`), so that an old SDK can
read a new server. A server that claims to be compatible is held to the opposite.
"""

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from anthropic._models import UnionDiscriminator
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, create_model

STRICT = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(strict(kind))


def validate(kind: Any, raw: str | bytes) -> Any:
    """Raise ValidationError unless the JSON text is exactly a `kind`."""
    return adapter(kind).validate_json(raw)


def strict(kind: Any) -> Any:
    """Rewrite an annotation so that every model in it is strict and closed."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _strict_model(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = strict(arguments[0])
        tags = [note.field_name for note in arguments[1:] if isinstance(note, UnionDiscriminator)]
        return Annotated[inner, Field(discriminator=tags[0])] if tags and _is_union(arguments[0]) else inner
    if origin is Union or origin is types.UnionType:
        return Union[tuple(strict(member) for member in arguments)]  # noqa: UP007  # the members are not known here
    if origin is typing.Literal or not arguments:
        return kind
    return origin[tuple(strict(argument) for argument in arguments)]


@functools.cache
def _strict_model(kind: type[BaseModel]) -> type[BaseModel]:
    kind.model_rebuild()
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        # A discriminator may sit beside the annotation, where pydantic has moved it.
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        default = ... if field.is_required() else field.default
        fields[name] = (strict(annotation), Field(default, alias=field.alias))
    return create_model(kind.__name__, __config__=STRICT, **fields)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and len(get_args(kind)) > 1


def left_out(kind: Any, value: JsonValue, place: str = "") -> Iterator[str]:
    """The fields of the SDK's type that an object does not show, not even as null."""
    model = _model_of(kind, value)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from left_out(get_args(_bare(kind))[0], item, f"{place}[{index}]")
    elif model is not None and isinstance(value, dict):
        for name, field in model.model_fields.items():
            key = field.alias or name
            if key not in value:
                yield f"{place}.{key}"
            else:
                yield from left_out(_with_metadata(field), value[key], f"{place}.{key}")


def nulls(value: JsonValue, place: str = "") -> Iterator[str]:
    """The places that are null."""
    if value is None:
        yield place
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nulls(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nulls(item, f"{place}.{key}")


def _with_metadata(field: Any) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _bare(kind: Any) -> Any:
    """The list type of `Optional[List[X]]`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if _is_union(kind):
        return next(_bare(member) for member in get_args(kind) if get_origin(_bare(member)) is list)
    return kind


def _model_of(kind: Any, value: JsonValue) -> type[BaseModel] | None:
    """The model of a type, or the member of a union, that an object is of."""
    if not isinstance(value, Mapping):
        return None
    if get_origin(kind) is Annotated:
        return _model_of(get_args(kind)[0], value)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kind.model_rebuild()
        tag = kind.model_fields.get("type")
        return kind if tag is None or value.get("type") in get_args(tag.annotation) else None
    if _is_union(kind):
        found = (_model_of(member, value) for member in get_args(kind))
        return next((model for model in found if model is not None), None)
    return None
