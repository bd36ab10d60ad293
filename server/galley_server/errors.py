"""Every error a caller may meet, in one tree, with the one mapping to the wire.

GalleyError
├── RequestError            the caller can do something about it; has a status and an official type
│   ├── InvalidRequest      400  invalid_request_error
│   ├── Unauthenticated     401  authentication_error
│   ├── Forbidden           403  permission_error
│   ├── NotFound            404  not_found_error
│   ├── Conflict            409  conflict_error
│   ├── TooLarge            413  request_too_large
│   ├── RateLimited         429  rate_limit_error (with retry_after)
│   └── Unavailable         503  api_error: the store cannot acknowledge now; nothing was done
├── ConfigError             a setting is wrong: the server refuses to start
└── LogError                between the log and the brain; never reaches a face
    ├── AppendConflict      something arrived since the state was folded: fold and decide again
    ├── LeaseLost           another epoch owns the session: stop
    ├── AlreadyAnswered     a repeatable call has its answer: nothing was done, give that answer again
    └── ChainBroken         a row, or the head, is not what was written

What goes wrong in a sandbox is in `galley_sandbox.errors`, a tree of its own.

The table at https://platform.claude.com/docs/en/api/errors is the source of the statuses and types.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class GalleyError(Exception):
    """Root of the tree. The message is safe to show: no secret, no foreign response body."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(GalleyError):
    """Answered in the official envelope by the HTTP face and as a tool error by the MCP face."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"

    def __init__(self, message: str, *, error_code: str | None = None) -> None:
        super().__init__(message)
        self.error_code = error_code


class InvalidRequest(RequestError):
    status = 400
    type = "invalid_request_error"


class Unauthenticated(RequestError):
    status = 401
    type = "authentication_error"


class Forbidden(RequestError):
    status = 403
    type = "permission_error"


class NotFound(RequestError):
    status = 404
    type = "not_found_error"


class Conflict(RequestError):
    status = 409
    type = "conflict_error"


class TooLarge(RequestError):
    status = 413
    type = "request_too_large"


class RateLimited(RequestError):
    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int, error_code: str | None = None) -> None:
        super().__init__(message, error_code=error_code)
        self.retry_after = retry_after


class Unavailable(RequestError):
    """The store cannot make anything durable now (disk full, read-only, corrupt). Nothing was acknowledged."""

    status = 503
    type = "api_error"


class ConfigError(GalleyError):
    """A setting is wrong. The message names the setting and says what would be right."""


class LogError(GalleyError):
    pass


class AppendConflict(LogError):
    """`expected` was not the session's last sequence number."""

    def __init__(self, session_id: str, *, expected: int, actual: int) -> None:
        super().__init__(f"{session_id} is at row {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class LeaseLost(LogError):
    """A newer epoch holds the session."""

    def __init__(self, session_id: str, *, fence: int, epoch: int) -> None:
        super().__init__(f"{session_id} is held by epoch {epoch}, this writer has {fence}")
        self.fence = fence
        self.epoch = epoch


class AlreadyAnswered(LogError):
    """A call with this idempotency key has been answered. The effect was not repeated."""

    def __init__(self, key: str) -> None:
        super().__init__(f"a call with the idempotency key {key} was answered before")
        self.key = key


class ChainBroken(LogError):
    """A row or the head is not what was written."""

    def __init__(self, session_id: str, *, seq: int, reason: str) -> None:
        super().__init__(f"{session_id}: row {seq}: {reason}")
        self.seq = seq
        self.reason = reason


@contextmanager
def ungrouped() -> Iterator[None]:
    """An error that leaves task groups alone leaves as itself: that there were groups is nobody's business."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
