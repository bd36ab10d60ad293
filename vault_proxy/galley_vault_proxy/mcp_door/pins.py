"""Definitions of tools as they were first seen: what changes afterwards is held back until a person has looked at it.

A tool's name, description and schema are read by a model as instructions. A server that was harmless when somebody
decided to use it can change them any day, so the first definition is kept and every later one is compared with it.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from galley_vault_proxy.errors import Unavailable

MOST_PINS: Final = 4096
LARGEST_PIN: Final = 1 << 18
MOST_PINNED: Final = 16 << 20
"""For one place: how many, and how many characters, one by one and together."""

INSTRUCTIONS: Final = ""
"""The name under which a server's instructions are pinned: no tool can have it."""


@dataclass(frozen=True, slots=True)
class PinPlace:
    """Whose definitions: those of one server as one credential sees them. Servers may show each caller other tools."""

    url: str
    credential_id: str


@dataclass(frozen=True, slots=True)
class Pin:
    """`definition` is canonical JSON, `digest` its SHA-256 in hex."""

    name: str
    digest: str
    definition: str

    @property
    def value(self) -> Any:
        return json.loads(self.definition)


class PinStore(Protocol):
    """Keeps pins durably. Every call raises Unavailable when it cannot be done, or when what is kept is damaged."""

    async def load(self, place: PinPlace) -> Mapping[str, Pin]:
        """All pins of a place, by name. A pin whose digest is not that of its definition makes the place unusable."""
        ...

    async def add(self, place: PinPlace, pins: Collection[Pin]) -> Mapping[str, Pin]:
        """Add those whose names are not pinned yet; return all that stand now. The first to come stays."""
        ...

    async def replace(self, place: PinPlace, pin: Pin) -> None:
        """A person approved this definition."""
        ...

    async def forget(self, url: str, name: str | None = None) -> int:
        """Drop the pins of a server, or of one tool of it, for every credential; return how many there were."""
        ...


class MemoryPins:
    """A PinStore for tests and for proxies that keep nothing."""

    def __init__(self) -> None:
        self._places: dict[PinPlace, dict[str, Pin]] = {}

    async def load(self, place: PinPlace) -> Mapping[str, Pin]:
        return sound(place, self._places.get(place, {}).values())

    async def add(self, place: PinPlace, pins: Collection[Pin]) -> Mapping[str, Pin]:
        standing = self._places.setdefault(place, {})
        for pin in pins:
            standing.setdefault(pin.name, pin)
        return dict(standing)

    async def replace(self, place: PinPlace, pin: Pin) -> None:
        self._places.setdefault(place, {})[pin.name] = pin

    async def forget(self, url: str, name: str | None = None) -> int:
        count = 0
        for place, pins in self._places.items():
            for known in [known for known in pins if place.url == url and name in (None, known)]:
                del pins[known]
                count += 1
        return count


def pin(name: str, definition: object) -> Pin:
    text = canonical(definition)
    return Pin(name, _digest(text), text)


def canonical(value: object) -> str:
    """One text for one JSON value: keys in order, no blanks, no escapes that are not needed."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def sound(place: PinPlace, pins: Collection[Pin]) -> dict[str, Pin]:
    """The pins by name. Raises Unavailable if one was tampered with or damaged: then nothing of the server passes."""
    for found in pins:
        if _digest(found.definition) != found.digest:
            raise Unavailable(
                f"the pinned definitions of the MCP server at {place.url} are damaged, so none of its tools can be "
                "used: whoever runs the vault proxy must look at them and drop them",
                error_code="pins_damaged",
            )
    return {found.name: found for found in pins}


def fitting(new: Mapping[str, Pin], pinned: Mapping[str, Pin]) -> dict[str, Pin]:
    """Those of the new ones that there is room for: a server must not fill the disk with names that it makes up."""
    room, left = MOST_PINS - len(pinned), MOST_PINNED - sum(len(found.definition) for found in pinned.values())
    fit: dict[str, Pin] = {}
    for name, found in new.items():
        size = len(found.definition)
        if room > 0 and size <= min(left, LARGEST_PIN):
            fit[name] = found
            room, left = room - 1, left - size
    return fit


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A listing against the pins: what is new, what stands as it was, and what has changed since."""

    new: Mapping[str, Pin] = field(default_factory=dict)
    same: frozenset[str] = frozenset()
    drifted: Mapping[str, Pin] = field(default_factory=dict)


def compare(listed: Collection[Pin], pinned: Mapping[str, Pin]) -> Comparison:
    """Pure. A name that is listed twice with two definitions has drifted: a client may take either."""
    once: dict[str, Pin] = {}
    twice: set[str] = set()
    for found in listed:
        if once.setdefault(found.name, found).digest != found.digest:
            twice.add(found.name)
    changed = {
        name: found
        for name, found in once.items()
        if name in twice or (name in pinned and pinned[name].digest != found.digest)
    }
    return Comparison(
        new={name: found for name, found in once.items() if name not in pinned and name not in changed},
        same=frozenset(name for name in once if name in pinned and name not in changed),
        drifted=changed,
    )
