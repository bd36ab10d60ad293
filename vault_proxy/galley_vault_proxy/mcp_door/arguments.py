"""Arguments of a tool call against the pinned schema of the tool. Bounded: both sides are written by strangers. No I/O.

The schema is the server's, the arguments are the sandbox's. Nothing is fetched for either, and a schema that would
keep the proxy busy refuses the call instead. Only a `pattern` that could take exponential time is left to the server.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import islice
from typing import Any, Final

from jsonschema import (  # type: ignore[import-untyped]
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from jsonschema.exceptions import UnknownType, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import extend  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import NoSuchResource, Unresolvable

_STEPS: Final = 20_000
_MOST_PROBLEMS: Final = 5
_LONGEST_PATTERN: Final = 512
_REGEX_STEPS: Final = 100_000
_UNIQUE: Final = 1_000
# What can be matched in more than one way, so that a mismatch may take every way there is.
_REPEATS: Final = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\d*\})")
_NESTED: Final = re.compile(r"\)\s*(?:[*+]|\{)|\(\?[=!<]|\\[1-9]|\(\?P=")
_DIALECTS: Final = {
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
}


class UncheckableSchema(Exception):
    """The pinned schema cannot be used to check anything. The message says why."""


class _TooComplex(Exception):
    pass


class _Meter:
    """Counts the steps of one check. Checks do not wait, so one at a time is counted."""

    def __init__(self) -> None:
        self.left = 0

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _TooComplex


_METER: Final = _Meter()


class ArgumentCheck:
    """One schema, ready to be used many times."""

    def __init__(self, schema: object) -> None:
        self._refusal = _refusal(schema)
        if self._refusal is None:
            declared = schema.get("$schema") if isinstance(schema, dict) else None
            dialect = _DIALECTS.get(declared.rstrip("#")) if isinstance(declared, str) else None
            # An empty registry: what is not in the schema itself does not exist.
            self._validator = _bounded(dialect or Draft202012Validator)(schema, registry=_nowhere())

    def problems(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with the arguments, a sentence each, at most a few. Raises UncheckableSchema."""
        if self._refusal is not None:
            raise UncheckableSchema(self._refusal)
        _METER.left = _STEPS
        try:
            return [_sentence(error) for error in islice(self._validator.iter_errors(dict(arguments)), _MOST_PROBLEMS)]
        except (_TooComplex, RecursionError):
            raise UncheckableSchema("checking the arguments against it takes too long") from None
        except (NoSuchResource, Unresolvable):
            raise UncheckableSchema("it refers to something outside itself") from None
        except (UnknownType, TypeError, ValueError, AttributeError, KeyError, re.error, OverflowError):
            raise UncheckableSchema("it is not a valid JSON Schema") from None


def _refusal(schema: object) -> str | None:
    """Why a schema is not used at all: it is none, or the library would run a costly pattern over names of members."""
    if not isinstance(schema, dict | bool):
        return "it is not a JSON Schema"
    left: list[object] = [schema]
    seen = 0
    while left:
        seen += 1
        if seen > _STEPS:
            return "it is too large"
        node = left.pop()
        if isinstance(node, dict):
            patterns = node.get("patternProperties")
            if isinstance(patterns, dict) and any(_ways(str(pattern)) > 2 for pattern in patterns):
                return "a pattern of its patternProperties takes too long to check"
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)
    return None


@cache
def _nowhere() -> Registry[Any]:
    return Registry()


@cache
def _bounded(dialect: Any) -> Any:
    """The dialect with every keyword counted, and those that can take exponential time replaced."""
    keywords = {name: _counted(check) for name, check in dialect.VALIDATORS.items()}
    keywords["pattern"] = _counted(_pattern)
    keywords["uniqueItems"] = _counted(_unique_items(dialect.VALIDATORS["uniqueItems"]))
    return extend(dialect, keywords)


def _counted(check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _METER.spend(1)
        yield from check(validator, value, instance, schema) or ()

    return counted


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, str) or (len(instance) > 1 and len(instance) ** _ways(pattern) > _REGEX_STEPS):
        return
    if re.search(pattern, instance) is None:
        yield ValidationError(f"{instance[:100]!r} does not match {pattern[:100]!r}")


def _unique_items(check: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, list) and len(instance) > _UNIQUE:
            raise _TooComplex
        yield from check(validator, value, instance, schema) or ()

    return bounded


@lru_cache(maxsize=1024)
def _ways(pattern: str) -> int:
    """The power of a text's length that matching it may take; a high one where it may be exponential."""
    if len(pattern) > _LONGEST_PATTERN or _NESTED.search(pattern):
        return 64
    return len(_REPEATS.findall(pattern)) + (not pattern.startswith("^"))


def _sentence(error: ValidationError) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    # The library quotes the whole value; the model knows what it sent.
    said = error.message if len(error.message) <= 300 else f"{error.message[:300]}..."
    return f"arguments{where}: {said}"
