"""What is odd about a new definition of a tool. Findings are reported, never decided on: only a person can judge. Pure.

A description that is written for the model and not for the user is the usual way to turn an agent around.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

Finding: TypeAlias = Literal[
    "lint_hidden_characters",
    "lint_orders_to_the_model",
    "lint_names_another_tool",
    "lint_oversize",
    "lint_icon_url",
    "lint_odd_name",
]

_LARGEST: Final = 16 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_ORDERS: Final = re.compile(
    r"ignore\s+(?:all|any|the|your|previous|prior|other)\b|disregard\s+(?:all|any|the|your|previous)\b"
    r"|(?:do\s+not|don't|never)\s+(?:tell|mention|inform|reveal|show)\b"
    r"|<\s*(?:system|important|instructions?|secret)\b|\bIMPORTANT\b\s*[:!]|\bsystem\s+prompt\b"
    r"|before\s+(?:using|calling)\s+(?:this|any)\s+(?:other\s+)?tool|without\s+(?:telling|asking)\s+the\s+user",
    re.IGNORECASE,
)
# What stands between and around visible characters without being seen: format characters, private use, tags.
_HIDDEN: Final = frozenset({"Cf", "Co", "Cn", "Cs"})
_HARMLESS: Final = frozenset({"\ufeff", "\u00ad", "\u200d"})  # a byte order mark, a soft hyphen, the joiner in emoji


def lint(definition: Mapping[str, Any], others: Collection[str] = ()) -> tuple[Finding, ...]:
    """`others`: names of tools of other servers that the same session uses."""
    found: set[Finding] = set()
    texts = list(_texts(definition))
    whole = "\n".join(texts)
    if any(unicodedata.category(c) in _HIDDEN and c not in _HARMLESS for c in set(whole)) or _control(whole):
        found.add("lint_hidden_characters")
    if _ORDERS.search(whole):
        found.add("lint_orders_to_the_model")
    if any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", whole) for name in others if len(name) > 3):
        found.add("lint_names_another_tool")
    if len(whole) > _LARGEST:
        found.add("lint_oversize")
    if not _NAME.fullmatch(str(definition.get("name", ""))):
        found.add("lint_odd_name")
    if not all(_harmless_icon(icon) for icon in _list(definition.get("icons"))):
        found.add("lint_icon_url")
    return tuple(sorted(found))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _control(text: str) -> bool:
    return any(unicodedata.category(c) == "Cc" and c not in "\n\r\t" for c in set(text))


def _harmless_icon(icon: object) -> bool:
    source = icon.get("src") if isinstance(icon, dict) else None
    return isinstance(source, str) and source.startswith(("https://", "data:image/"))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
