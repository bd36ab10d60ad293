"""What the runtime needs of the brain and the hands."""

from typing import Protocol


class Waker(Protocol):
    """The brain, as seen from above."""

    def wake(self, session_id: str) -> None:
        """Something was appended to the session. Returns at once; may be called any number of times."""
        ...


class Releaser(Protocol):
    """The hands, as seen from above."""

    async def release(self, session_id: str) -> None:
        """The session is archived or deleted: its sandbox goes. Idempotent; never raises."""
        ...
