"""Which calls this hand knows, so that none ever runs twice. No I/O here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MAX_ID = 256
MAX_UNACKNOWLEDGED = 512
MAX_KEPT_BYTES = 64 * 1024 * 1024
MAX_REMEMBERED = 20_000


class Refused(Exception):
    """The call is turned down before anything runs."""


class _Entry:
    __slots__ = ("digest", "result", "waiting")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.result: bytes | None = None
        self.waiting: list[Callable[[bytes], None]] = []


class Ledger:
    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._acknowledged: OrderedDict[str, None] = OrderedDict()
        self._kept_bytes = 0

    def begin(self, call_id: str, digest: bytes, waiter: Callable[[bytes], None]) -> bool:
        """Whether to run it now. A known call is joined: its result goes to `waiter`, perhaps at once."""
        if not 0 < len(call_id) <= MAX_ID:
            raise Refused(f"a call id has 1 to {MAX_ID} characters")
        if call_id in self._acknowledged:
            raise Refused(f"call {call_id} has ended and its result was acknowledged; it does not run again")
        entry = self._entries.get(call_id)
        if entry is not None:
            if entry.digest != digest:
                raise Refused(f"call {call_id} is known with another tool or input")
            if entry.result is not None:
                waiter(entry.result)
            else:
                entry.waiting.append(waiter)
            return False
        if len(self._entries) >= MAX_UNACKNOWLEDGED or self._kept_bytes >= MAX_KEPT_BYTES:
            raise Refused("too many results wait to be acknowledged")
        entry = self._entries[call_id] = _Entry(digest)
        entry.waiting.append(waiter)
        return True

    def leave(self, call_id: str, waiter: Callable[[bytes], None]) -> None:
        """This waiter is gone; the call goes on."""
        entry = self._entries.get(call_id)
        if entry is not None and waiter in entry.waiting:
            entry.waiting.remove(waiter)

    def finish(self, call_id: str, result: bytes) -> None:
        entry = self._entries[call_id]
        entry.result = result
        self._kept_bytes += len(result)
        waiting, entry.waiting = entry.waiting, []
        for waiter in waiting:
            waiter(result)

    def state(self, call_id: str) -> tuple[str, bytes | None]:
        entry = self._entries.get(call_id)
        if entry is not None:
            return ("running", None) if entry.result is None else ("finished", entry.result)
        return ("acknowledged", None) if call_id in self._acknowledged else ("unknown", None)

    def acknowledge(self, call_id: str) -> None:
        entry = self._entries.get(call_id)
        if entry is None:
            return
        if entry.result is None:
            raise Refused(f"call {call_id} is still running")
        self._kept_bytes -= len(entry.result)
        del self._entries[call_id]
        self._acknowledged[call_id] = None
        while len(self._acknowledged) > MAX_REMEMBERED:
            self._acknowledged.popitem(last=False)
