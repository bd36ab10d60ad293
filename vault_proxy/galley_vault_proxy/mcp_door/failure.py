"""How asking a server can fail. The messages are safe to show."""

from collections.abc import Sequence
from typing import Any, Final

NOTHING_DONE: Final = frozenset(
    {
        "address_refused",
        "begin_timeout",
        "connect_failed",
        "crash_loop",
        "list_endless",
        "list_refused",
        "list_timeout",
        "no_command",
        "no_sandbox",
        "no_session",
        "no_such_server",
        "redirect",
        "start_failed",
        "too_many",
        "upstream_unauthorized",
    }
)
"""Reasons that say that a server did nothing of what it was asked: it was not reached, or refused at its gate.

With any other it may have done it, and whoever asked must not simply ask again."""


class ServerFailed(Exception):
    """A server could not be asked, or answered with what is not passed on.

    `type` is what a runtime tells its user, `reason` what the audit says.
    """

    @property
    def nothing_done(self) -> bool:
        return self.reason in NOTHING_DONE

    def __init__(self, message: str, *, reason: str, type_: str = "mcp_connection_failed_error") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.type = type_


class ServerStatus(ServerFailed):
    """A server answered with an HTTP error and no message of the protocol: only its status is passed on."""

    def __init__(self, server: str, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(f"{server} answered with HTTP status {status}", reason=f"status_{status}")
        self.status = status
        self.headers = [(name, value) for name, value in headers if name in (b"allow", b"retry-after")]


class RpcError(Exception):
    """A server answered a request with an error of the protocol."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
