"""The tools of one server as one credential sees them: which stand as they were pinned, and which are held back.

Every listing that passes the door comes through here, and a call of a tool that was never listed makes the door list
them itself. So nothing is shown or called whose definition was not compared with its pin.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from galley_vault_proxy.mcp_door.arguments import ArgumentCheck
from galley_vault_proxy.mcp_door.lint import lint
from galley_vault_proxy.mcp_door.pins import INSTRUCTIONS, Pin, PinPlace, PinStore, compare, fitting, pin

Listing: TypeAlias = Sequence[Mapping[str, Any]]
Lister: TypeAlias = Callable[[], Awaitable[Listing]]
Happened: TypeAlias = Literal["pinned", "drifted"] | str

MAX_TOOLS: Final = 4096
_MOST_TOLD: Final = 4096
_FRESH_S: Final = 300.0
_ASK_AGAIN_S: Final = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PinNews:
    """Something about a definition that the audit is to tell. `reason` is a fixed word."""

    tool: str
    reason: str
    held_back: bool


@dataclass(frozen=True, slots=True)
class Known:
    """A tool as it was last listed. `check` is that of the pinned schema, never of a later one."""

    pin: Pin
    drifted: bool
    check: ArgumentCheck
    schema: object


class Catalogue:
    def __init__(
        self,
        place: PinPlace,
        store: PinStore,
        *,
        clock: Callable[[], float],
        others: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self._place = place
        self._store = store
        self._clock = clock
        self._others = others
        self._known: dict[str, Known] = {}
        self._listed_at = float("-inf")
        self._asked_at = float("-inf")
        self._told: set[tuple[str, str]] = set()
        self._turn = asyncio.Lock()
        self.last_used = clock()

    @property
    def names(self) -> Collection[str]:
        return self._known.keys()

    def known(self, name: str) -> Known | None:
        """The tool as it was last seen, however long ago."""
        return self._known.get(name)

    def stale(self) -> None:
        """The server says that its tools have changed."""
        self._listed_at = float("-inf")

    async def find(self, name: str, lister: Lister, news: list[PinNews]) -> Known | None:
        """The tool, from a listing that is not old. None: the server does not list it. Raises what `lister` raises."""
        async with self._turn:
            now = self._clock()
            found = self._known.get(name)
            # One that is held back may have been approved meanwhile; one that is not known may be new.
            doubtful = (found is None or found.drifted) and now - self._asked_at > _ASK_AGAIN_S
            if now - self._listed_at > _FRESH_S or doubtful:
                self._asked_at = now
                listed = await lister()
                await self._take(listed, news)
                self._known = {tool: self._known[tool] for tool in map(_name, listed) if tool in self._known}
                self._listed_at = now
            return self._known.get(name)

    async def take(self, tools: Listing, news: list[PinNews]) -> frozenset[str]:
        """A page of a listing passes. Return the names of the tools in it that may be shown."""
        async with self._turn:
            return await self._take(tools, news)

    async def instructions(self, text: str, news: list[PinNews]) -> bool:
        """Whether a server's instructions are those that were pinned."""
        async with self._turn:
            await self._compare([pin(INSTRUCTIONS, text)], news)
            return not self._known[INSTRUCTIONS].drifted

    async def _take(self, tools: Listing, news: list[PinNews]) -> frozenset[str]:
        listed = [pin(_name(tool), tool) for tool in tools[:MAX_TOOLS] if _name(tool)]
        await self._compare(listed, news)
        return frozenset(found.name for found in listed if not self._known[found.name].drifted)

    async def _compare(self, listed: list[Pin], news: list[PinNews]) -> None:
        known = self._known
        if all((old := known.get(found.name)) and not old.drifted and old.pin == found for found in listed):
            return
        pinned = await self._store.load(self._place)
        outcome = compare(listed, pinned)
        if fit := fitting(outcome.new, pinned):
            pinned = await self._store.add(self._place, fit.values())
            # Another process may have pinned another definition in between.
            outcome = compare(listed, pinned)
            self._tell_new(listed, outcome.same, news)
        if len(known) > 2 * MAX_TOOLS:
            known.clear()  # a server with other names every time: what is listed now comes again below
        for found in listed:
            drifted = found.name not in outcome.same
            standing = pinned.get(found.name, found)
            old = known.get(found.name)
            if old is None or old.pin != standing or old.drifted != drifted:
                known[found.name] = _known(standing, drifted)
            if drifted:
                reason = "definition_drifted" if found.name in outcome.drifted else "definition_not_kept"
                self._tell(PinNews(found.name, reason, True), found.digest, news)

    def _tell_new(self, listed: Collection[Pin], same: frozenset[str], news: list[PinNews]) -> None:
        for found in listed:
            if found.name not in same or found.name in self._known:
                continue
            self._tell(PinNews(found.name, "definition_pinned", False), found.digest, news)
            value = found.value if found.name != INSTRUCTIONS else {"name": "instructions", "text": found.value}
            for finding in lint(value, self._others()):
                self._tell(PinNews(found.name, finding, False), found.digest, news)

    def _tell(self, item: PinNews, digest: str, news: list[PinNews]) -> None:
        key = (item.reason, digest)
        if key not in self._told:
            if len(self._told) >= _MOST_TOLD:
                return  # it is held back all the same, and each call of it is told
            self._told.add(key)
            news.append(item)


def _name(tool: Mapping[str, Any]) -> str:
    name = tool.get("name")
    return name if isinstance(name, str) else ""


def _known(found: Pin, drifted: bool) -> Known:
    value = found.value if found.name != INSTRUCTIONS else {}
    schema = value.get("inputSchema", {"type": "object"}) if isinstance(value, dict) else None
    return Known(found, drifted, ArgumentCheck(schema), schema)
