"""Which handshake-era HTTP sessions exist, and which one may go when there are too many. No I/O.

Clients in the field rarely end their session, and each one left behind holds some 40 KB until its idle timeout.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from mcp_types import RequestId

Clock: TypeAlias = Callable[[], float]

# A session that was used this recently belongs to somebody: better to refuse the newcomer.
FRESH_S = 30.0


@dataclass(slots=True)
class _Session:
    used_at: float
    busy: int = 0
    ids: set[str] = field(default_factory=set)


class SessionBook:
    def __init__(self, limit: int, idle_s: float) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._sessions: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def opened(self, session_id: str, now: float) -> None:
        self._sessions[session_id] = _Session(now)

    def ended(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)

    @property
    def full(self) -> bool:
        return len(self._sessions) >= self._limit

    def forget_idle(self, now: float) -> None:
        """The SDK has ended these by itself."""
        gone = [id_ for id_, session in self._sessions.items() if _idle(session, now) > self._idle_s]
        for id_ in gone:
            del self._sessions[id_]

    def victim(self, now: float) -> str | None:
        """The session that nobody has used for longest; None if all of them are in use."""
        idle = {id_: _idle(session, now) for id_, session in self._sessions.items()}
        longest = max(idle, key=idle.__getitem__, default=None)
        return longest if longest is not None and idle[longest] > FRESH_S else None

    def answering(self, session_id: str, request_id: RequestId) -> bool:
        """Whether a request of this id is under way: the SDK would mix up two of them and answer only one."""
        session = self._sessions.get(session_id)
        return session is not None and str(request_id) in session.ids

    @contextmanager
    def using(self, session_id: str | None, request_id: RequestId | None, clock: Clock) -> Iterator[None]:
        session = self._sessions.get(session_id) if session_id is not None else None
        if session is None:
            yield
            return
        key = None if request_id is None else str(request_id)
        session.busy += 1
        if key is not None:
            session.ids.add(key)
        try:
            yield
        finally:
            session.busy -= 1
            session.used_at = clock()
            if key is not None:
                session.ids.discard(key)


def _idle(session: _Session, now: float) -> float:
    return 0.0 if session.busy else now - session.used_at
