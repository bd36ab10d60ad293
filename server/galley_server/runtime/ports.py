"""What the runtime needs of the brain and the hands, and what the brain gets from it: to be woken."""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from galley_server.errors import InvalidRequest, NotFound
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


@dataclass(frozen=True, slots=True)
class VaultSummary:
    """`opens`: for each credential the MCP server, or the variable of the sandbox, that it is for."""

    id: str
    name: str
    opens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VaultPage:
    data: tuple[VaultSummary, ...]
    next_page: str | None


class Vaults(Protocol):
    """The vault proxy, as seen from the sessions."""

    @property
    def networked(self) -> bool:
        """Whether sandboxes have a way out at all."""
        ...

    async def check(self, vault_ids: Sequence[str]) -> None:
        """Raise NotFound or InvalidRequest, which name the one, unless a session may use all of these vaults.

        Unavailable when that cannot be found out now.
        """
        ...

    async def list(self, *, limit: int, page: str | None) -> VaultPage:
        """Those that new sessions can use, newest first. Raises RequestError in the vault proxy's words."""
        ...

    async def changed(self, session_id: str) -> None:
        """The session's agent was given other servers or tools. Never raises."""
        ...


class NoVaults:
    """For a server without a vault proxy."""

    networked: Final = False

    async def check(self, vault_ids: Sequence[str]) -> None:
        if vault_ids:
            raise InvalidRequest("vault_ids: this server runs without a vault proxy (GALLEY_BROKER=off)")

    async def list(self, *, limit: int, page: str | None) -> VaultPage:
        raise InvalidRequest("this server runs without a vault proxy (GALLEY_BROKER=off)")

    async def changed(self, session_id: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Passage:
    """A request that is passed on to the vault proxy as it is. Its body is bytes: nobody here reads or keeps them.

    `path` is made from a path of ours, never the client's own text. `trusted`: it came with this server's key.
    """

    method: str
    path: str
    query: bytes
    headers: Mapping[str, str]
    body: AsyncIterable[bytes] | None
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Passed:
    """Its answer, whose body is read once, as it comes."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: AsyncIterator[bytes]


class Relay(Protocol):
    """The vault proxy's API, as the HTTP face passes it on."""

    def relay(self, passage: Passage) -> AbstractAsyncContextManager[Passed]:
        """Raises Unavailable when there is no answer, NotFound when there is no vault proxy."""
        ...


class NoRelay:
    """For a server without a vault proxy."""

    def relay(self, passage: Passage) -> AbstractAsyncContextManager[Passed]:
        raise NotFound(f"{passage.path} is served by the vault proxy, and this server runs without (GALLEY_BROKER=off)")


def wakes(brain: Waker) -> Watcher:
    """Wake the brain whenever something from a client is in the log.

    It hangs on the commit and not on the call that appends, because a call may be cancelled after its commit.
    """

    def watch(notice: Notice) -> None:
        if isinstance(notice, Grown) and any(row.type in CLIENT_TYPES for row in notice.rows):
            brain.wake(notice.session_id)

    return watch
