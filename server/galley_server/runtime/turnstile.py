"""One at a time per session: who checks a state and then appends to it lets the next one in when it is done.

The append itself still proves that nothing came between. Without this, of many that check the same state only one could
append, and all others would have to begin again.
"""

import asyncio
from weakref import WeakValueDictionary


class Turnstile:
    """Belongs to one event loop. Forgets a session as soon as nobody stands there."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def at(self, session_id: str) -> asyncio.Lock:
        """What to hold meanwhile. They come through in the order in which they came."""
        return self._locks.setdefault(session_id, asyncio.Lock())
