"""How asking a server can fail. The messages are safe to show."""

from collections.abc import Sequence
from typing import Any


class ServerFailed(Exception):
    """A server could not be asked, or answered with what is not passed on.

    `type` is what a runtime tells its user, `reason` what the audit says.
    """

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
