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
        self._age = 0
        self._forgotten: OrderedDict[SecretRef, int] = OrderedDict()
        self._floor = 0

    def get(self, session_id: str, ref: SecretRef, now: float) -> Material | None:
        entry = self._entries.get((session_id, ref))
        if entry is None:
            return None
        if entry.until <= now:
            del self._entries[session_id, ref]
            return None
        self._entries.move_to_end((session_id, ref))
        return entry.material

    def ticket(self) -> Ticket:
        """To be taken before asking the store."""
        return Ticket(self._age)

    def put(self, ticket: Ticket, session_id: str, ref: SecretRef, material: Material, now: float) -> None:
        """Keep an answer, unless the secret was written since its ticket was taken: it may be the old one."""
        if self._ttl_s <= 0 or self._forgotten.get(ref, self._floor) > ticket:
            return
        self._entries[session_id, ref] = _Entry(material, now + self._ttl_s)
        self._entries.move_to_end((session_id, ref))
        if len(self._entries) > _MOST:
            self._entries.popitem(last=False)

    def forget(self, ref: SecretRef) -> None:
        """The secret was written or purged."""
        self._age += 1
        self._forgotten[ref] = self._age
        self._forgotten.move_to_end(ref)
        if len(self._forgotten) > _MOST:
            self._floor = self._forgotten.popitem(last=False)[1]
        for key in [key for key in self._entries if key[1] == ref]:
            del self._entries[key]

    def forget_session(self, session_id: str) -> None:
        for key in [key for key in self._entries if key[0] == session_id]:
            del self._entries[key]

    def forget_vault(self, vault_id: str) -> None:
        for key in [key for key in self._entries if key[1].vault_id == vault_id]:
            del self._entries[key]
        # A read of any of its secrets may be on its way, so no ticket of before counts.
        self._age += 1
        self._floor = self._age
        self._forgotten.clear()
