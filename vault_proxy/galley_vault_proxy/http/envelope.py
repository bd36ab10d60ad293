"""The official error envelope, and whether a client should try again. No I/O here."""

import json
from typing import Final

from galley_vault_proxy.errors import RateLimited, RequestError, Unavailable

Header = tuple[bytes, bytes]

JSON_TYPE: Final[Header] = (b"content-type", b"application/json")

# The official SDKs try 408, 409, 429 and every 5xx again by themselves unless the answer says not to.
_RETRY: Final[Header] = (b"x-should-retry", b"true")
_FINAL: Final[Header] = (b"x-should-retry", b"false")


class MethodNotAllowed(RequestError):
    status = 405
    type = "invalid_request_error"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class SlowRequest(RequestError):
    """The body stopped coming. Nothing was done."""

    status = 408
    type = "timeout_error"


class InternalError(RequestError):
    """A defect of ours. It says nothing but where to look: the request id is in the log, with the traceback."""

    status = 500
    type = "api_error"

    def __init__(self) -> None:
        super().__init__("internal error; the proxy's log has the details under this request id")


def envelope(error: RequestError, request_id: str) -> bytes:
    about: dict[str, object] = {"type": error.type, "message": error.message}
    if error.error_code is not None:
        about["details"] = {"error_code": error.error_code}
    whole = {"type": "error", "error": about, "request_id": request_id}
    # A message may quote what a client sent; a lone surrogate in it must not turn an answer into a failure.
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def error_headers(error: RequestError) -> list[Header]:
    """What the status alone does not tell: whether and when to try again, and what would be allowed."""
    headers = [JSON_TYPE, _RETRY if isinstance(error, RateLimited | Unavailable | SlowRequest) else _FINAL]
    match error:
        case RateLimited():
            headers.append((b"retry-after", str(error.retry_after).encode()))
        case Unavailable():
            headers.append((b"retry-after", b"1"))
        case MethodNotAllowed():
            headers.append((b"allow", error.allow.encode()))
        case _:
            pass
    return headers
