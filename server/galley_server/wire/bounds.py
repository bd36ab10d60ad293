"""Fields with their documented limits, and what the official API has that this release refuses. No I/O here."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from galley_server.wire.validation import RuleBroken

Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
Description: TypeAlias = Annotated[str, Field(max_length=2048)]
SystemPrompt: TypeAlias = Annotated[str, Field(max_length=100_000)]
Title: TypeAlias = Annotated[str, Field(max_length=2048)]
Version: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
Id: TypeAlias = Annotated[str, Field(min_length=1, max_length=128)]

MAX_PAIRS: Final = 16
MAX_KEY: Final = 64
MAX_VALUE: Final = 512


def _refuse_reserved(bag: Mapping[str, str | None]) -> None:
    for key, value in bag.items():
        if not key:
            raise RuleBroken("Keys should not be empty", code="invalid_metadata")
        if len(key) > MAX_KEY:
            raise RuleBroken(
                f"Key should have at most {MAX_KEY} characters (got {len(key)})", key, code="invalid_metadata"
            )
        if value is not None and len(value) > MAX_VALUE:
            raise RuleBroken(
                f"Value should have at most {MAX_VALUE} characters (got {len(value)})", key, code="invalid_metadata"
            )


def _bag(bag: dict[str, str]) -> dict[str, str]:
    if len(bag) > MAX_PAIRS:
        raise RuleBroken(f"Metadata should have at most {MAX_PAIRS} pairs (got {len(bag)})", code="invalid_metadata")
    _refuse_reserved(bag)
    return bag


def _patch(bag: dict[str, str | None]) -> dict[str, str | None]:
    _refuse_reserved(bag)
    return bag


Metadata: TypeAlias = Annotated[dict[str, str], AfterValidator(_bag)]
MetadataPatch: TypeAlias = Annotated[dict[str, str | None], AfterValidator(_patch)]
"""A string sets the key, null deletes it. The limit on pairs holds for the bag that results."""


def not_here(reason: str, *, nothing: tuple[object, ...] = (None, [], ())) -> Any:
    """A field of the official API that this release knows but does not serve: only what means "nothing" passes."""

    def refuse(value: object) -> object:
        if value in nothing:
            return value
        raise PydanticCustomError("refused", "{reason}", {"reason": reason})

    return BeforeValidator(refuse)


NoSkills: TypeAlias = Annotated[
    tuple[()] | None, not_here("Skills are not supported in this release of Galley; leave the list empty")
]
NoMultiagent: TypeAlias = Annotated[
    None, not_here("Multiagent orchestration is not supported in this release of Galley", nothing=(None,))
]
NoBudget: TypeAlias = Annotated[None, not_here("Budgets are not supported in this release of Galley", nothing=(None,))]


_STDIO: Final = re.compile(r"stdio:[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _is_http(value: str) -> bool:
    try:
        url = urlsplit(value)
        return url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False


def http_url(value: str) -> str:
    if not _is_http(value):
        raise PydanticCustomError("refused", "Input should be an http or https URL")
    return value


def mcp_url(value: str) -> str:
    """An address, or the name of a server that the vault proxy runs itself."""
    if not _is_http(value) and not _STDIO.fullmatch(value):
        raise PydanticCustomError(
            "refused", "Input should be an http or https URL, or stdio:NAME for a server that the vault proxy runs"
        )
    return value


HttpUrl: TypeAlias = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(http_url)]
McpUrl: TypeAlias = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(mcp_url)]


def unique(items: tuple[Any, ...], key: Callable[[Any], str | None], *, field: str, what: str) -> None:
    """Raise unless the keys of the items differ; items without a key do not count."""
    seen: set[str] = set()
    for index, item in enumerate(items):
        name = key(item)
        if name is not None and name in seen:
            raise RuleBroken(f"{what} '{name[:80]}' is given more than once", index, field)
        if name is not None:
            seen.add(name)


OpenJson: TypeAlias = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
