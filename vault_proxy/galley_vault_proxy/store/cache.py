"""Secrets read a moment ago, so that the hot path asks nobody. No I/O here: time comes in as an argument."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NewType

from galley_vault_proxy.store.port import Material, SecretRef

Ticket = NewType("Ticket", int)

_MOST: Final = 4096


@dataclass(frozen=True, slots=True)
class _Entry:
    material: Material
    until: float


class Cache:
    """What one session read is never given to another: Vault's own answer to each session counts."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._entries: OrderedDict[tuple[str, SecretRef], _Entry] = OrderedDict()
        self._readers: dict[SecretRef, set[str]] = {}
        self._age = 0
        # When a secret was last written, and for those no longer listed the newest of all.
        self._written: OrderedDict[SecretRef, int] = OrderedDict()
        self._floor = 0

    def get(self, session_id: str, ref: SecretRef, now: float) -> Material | None:
        entry = self._entries.get((session_id, ref))
        if entry is None:
            return None
        if entry.until <= now:
            self._drop(session_id, ref)
            return None
        self._entries.move_to_end((session_id, ref))
        return entry.material

    def ticket(self) -> Ticket:
        """To be taken before asking the store."""
        return Ticket(self._age)

    def put(self, ticket: Ticket, session_id: str, ref: SecretRef, material: Material, now: float) -> None:
        """Keep an answer, unless the secret was written since its ticket was taken: it may be the old one."""
        if self._ttl_s <= 0 or max(self._written.get(ref, 0), self._floor) > ticket:
            return
        self._entries[session_id, ref] = _Entry(material, now + self._ttl_s)
        self._entries.move_to_end((session_id, ref))
        self._readers.setdefault(ref, set()).add(session_id)
        if len(self._entries) > _MOST:
            self._drop(*next(iter(self._entries)))

    def forget(self, ref: SecretRef) -> None:
        """The secret was written or purged."""
        self._age += 1
        self._written[ref] = self._age
        self._written.move_to_end(ref)
        if len(self._written) > _MOST:
            self._floor = self._written.popitem(last=False)[1]
        for session_id in tuple(self._readers.get(ref, ())):
            self._drop(session_id, ref)

    def forget_session(self, session_id: str) -> None:
        for key in [key for key in self._entries if key[0] == session_id]:
            self._drop(*key)

    def forget_vault(self, vault_id: str) -> None:
        for key in [key for key in self._entries if key[1].vault_id == vault_id]:
            self._drop(*key)
        # A read of any of its secrets may be on its way, so no ticket of before counts.
        self._age += 1
        self._floor = self._age
        self._written.clear()

    def _drop(self, session_id: str, ref: SecretRef) -> None:
        del self._entries[session_id, ref]
        readers = self._readers[ref]
        readers.discard(session_id)
        if not readers:
            del self._readers[ref]
