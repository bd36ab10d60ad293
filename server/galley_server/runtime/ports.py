"""What the runtime needs of the brain and the hands, and what the brain gets from it: to be woken."""

from typing import Final, Protocol

from galley_server.log.store import Grown, Notice, Watcher

CLIENT_TYPES: Final = frozenset(
    {"user.message", "user.interrupt", "user.tool_confirmation", "user.custom_tool_result", "system.message"}
)


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


def wakes(brain: Waker) -> Watcher:
    """Wake the brain whenever something from a client is in the log.

    It hangs on the commit and not on the call that appends, because a call may be cancelled after its commit.
    """

    def watch(notice: Notice) -> None:
        if isinstance(notice, Grown) and any(row.type in CLIENT_TYPES for row in notice.rows):
            brain.wake(notice.session_id)

    return watch
