"""The audit log: one JSON line per decision and per use of a credential, never with a secret.

A line has fixed fields, each with a shape and a length, so there is no place in it for a secret; a text that looks
like a token all the same is blanked. Lines go to files of a bounded total size, in the order of their ids: an id is
the line's place, so that a reader goes on from any id without searching.
"""

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

import anyio
from anyio import to_thread
from pydantic import JsonValue

from galley_vault_proxy.audit_files import AuditFiles, Fields, Place
from galley_vault_proxy.errors import ConfigError, InvalidRequest, Unavailable
from galley_vault_proxy.telemetry import BYTES, DECISIONS, DURATION

Action: TypeAlias = Literal[
    "grant.mint",
    "grant.revoke",
    "session.revoke",
    "admin",
    "mcp.connect",
    "mcp.request",
    "mcp.tool",
    "mcp.pin",
    "egress.connect",
    "egress.request",
    "credential.use",
    "credential.write",
    "credential.refresh",
    "lease.issue",
    "lease.revoke",
]
Verdict: TypeAlias = Literal["allow", "deny"]
Who: TypeAlias = Literal["grant", "service", "nobody", "proxy"]

_TOKEN_LIKE: Final = re.compile(r"galley1\.[\w.-]+|\bhv[sb]\.[\w-]+|\b[sb]\.[A-Za-z0-9]{20,}|\beyJ[\w-]{8,}\.[\w.-]+")
_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_REASON: Final = re.compile(r"[a-z0-9_]{1,64}")
_TEXT: Final = 256
_BATCH: Final = 1024
_MOST_WAITING: Final = 8192
_READERS: Final = 2
_GATHER_S: Final = 0.025
_RETRY_S: Final = 0.5
_CLOSING_S: Final = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuditLine:
    """What happened. Ids are ids, `reason` is a fixed word; `server`, `tool` and `host` are cut to their bounds."""

    action: Action
    decision: Verdict
    reason: str | None = None
    who: Who = "grant"
    session_id: str | None = None
    grant_id: str | None = None
    thread_id: str | None = None
    event_id: str | None = None
    server: str | None = None
    tool: str | None = None
    host: str | None = None
    method: str | None = None
    vault_id: str | None = None
    credential_id: str | None = None
    credential_version: int | None = None
    bytes: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    duration_ms: float | None = None

    def plain(self) -> Mapping[str, str | int | float]:
        """The fields that are set, each in its bounds."""
        found: dict[str, str | int | float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            found[field.name] = _bounded(field.name, value) if isinstance(value, str) else value
        return found


def _bounded(name: str, value: str) -> str:
    if name == "reason":
        return value if _REASON.fullmatch(value) else "unspecified"
    if name.endswith("_id"):
        return value if _ID.fullmatch(value) and not _TOKEN_LIKE.search(value) else "invalid"
    return _TOKEN_LIKE.sub("***", value)[:_TEXT]


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which lines to show: all that are set must match. `after` is a line's id."""

    session_id: str | None = None
    grant_id: str | None = None
    decision: Verdict | None = None
    after: str | None = None
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Lines oldest first. `next_after` is what to ask with next, when `has_more`."""

    data: tuple[Mapping[str, JsonValue], ...]
    has_more: bool

    @property
    def next_after(self) -> str | None:
        return str(self.data[-1]["id"]) if self.data else None


class Audit:
    """Takes lines at once and writes them at once after, in batches, on a thread.

    When they cannot be written they are kept, up to a bound, and tried again; then `record` raises Unavailable, so
    that nothing happens without its line: the doors close.
    """

    def __init__(self, files: AuditFiles) -> None:
        self._files = files
        self._waiting: deque[Fields] = deque()
        self._recorded = 0
        self._written = 0
        self._failure: str | None = None
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._readers = anyio.CapacityLimiter(_READERS)

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, *, max_bytes: int) -> AsyncIterator[Self]:
        files = AuditFiles(directory, max_bytes=max_bytes)
        try:
            await to_thread.run_sync(files.prepare)
        except OSError as error:
            raise ConfigError(f"{directory} cannot be used for the audit log: {error.strerror}") from None
        audit = cls(files)
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(audit._pump(), name="audit")
            try:
                yield audit
            finally:
                try:
                    async with asyncio.timeout(_CLOSING_S):
                        await audit.flush()
                except (TimeoutError, Unavailable):
                    logger.error("%d audit lines were not written", len(audit._waiting))
                pump.cancel()

    def record(self, line: AuditLine) -> None:
        """Take one line. Raises Unavailable when too many could not be written: then do not do what it tells of."""
        if len(self._waiting) >= _MOST_WAITING:
            raise Unavailable("the audit log cannot be written, so nothing is let through: free its disk")
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._waiting.append({"at": at, **line.plain()})
        self._recorded += 1
        self._wake.set()
        _count(line)

    async def flush(self) -> None:
        """Return when everything recorded so far is in the file. Raises Unavailable when it cannot be written."""
        goal = self._recorded
        async with self._progress:
            await self._progress.wait_for(lambda: self._written >= goal or self._failure is not None)
        if self._written < goal:
            raise Unavailable(f"the audit log cannot be written: {self._failure}")

    async def progress(self) -> None:
        """Return after the next attempt to write, however it ends."""
        async with self._progress:
            await self._progress.wait()

    async def query(self, query: AuditQuery) -> AuditPage:
        """Return what matches. Raises InvalidRequest if `after` is no line's id."""
        after = None if query.after is None else Place.of(query.after)
        if query.after is not None and after is None:
            raise InvalidRequest("after: not the id of an audit line")
        await self.flush()
        found = await to_thread.run_sync(self._search, query, after, limiter=self._readers)
        return AuditPage(tuple(found[: query.limit]), len(found) > query.limit)

    async def ready(self) -> None:
        """Raise Unavailable, with the reason, unless lines are being written."""
        if self._failure is not None:
            raise Unavailable(f"the audit log cannot be written: {self._failure}")

    def _search(self, query: AuditQuery, after: Place | None) -> list[Mapping[str, JsonValue]]:
        wanted = {
            name: value
            for name in ("session_id", "grant_id", "decision")
            if (value := getattr(query, name)) is not None
        }
        # Most lines are somebody else's: only those that hold the text at all are parsed.
        marks = [json.dumps(value, ensure_ascii=False).encode() for value in wanted.values()]
        found: list[Mapping[str, JsonValue]] = []
        for line in self._files.scan(after):
            if not all(mark in line for mark in marks):
                continue
            fields = json.loads(line)
            if all(fields.get(name) == value for name, value in wanted.items()):
                found.append(fields)
                if len(found) > query.limit:
                    break
        return found

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            # Lines come in bursts, and a turn on the thread costs more than a line.
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            while self._waiting:
                batch = list(islice(self._waiting, _BATCH))
                try:
                    count = await to_thread.run_sync(self._files.append, batch)
                except OSError as error:
                    await self._failed(error.strerror or str(error))
                    continue
                for _ in range(count):
                    self._waiting.popleft()
                await self._succeeded(count)

    async def _failed(self, why: str) -> None:
        if self._failure is None:
            logger.error("the audit log cannot be written: %s", why)
        async with self._progress:
            self._failure = why
            self._progress.notify_all()
        await asyncio.sleep(_RETRY_S)

    async def _succeeded(self, count: int) -> None:
        async with self._progress:
            self._failure = None
            self._written += count
            self._progress.notify_all()


def _count(line: AuditLine) -> None:
    about = {"action": line.action, "decision": line.decision, "reason": line.reason or ""}
    DECISIONS.add(1, about)
    if line.bytes is not None:
        BYTES.add(line.bytes, {"action": line.action})
    if line.duration_ms is not None:
        DURATION.record(line.duration_ms, {"action": line.action})
