"""Every error a caller may meet, in one tree, with the one mapping to the wire.

ProxyError
├── RequestError            the caller can do something about it; has a status and an official type
│   ├── InvalidRequest      400  invalid_request_error
│   ├── Unauthenticated     401  authentication_error: the service key is missing or wrong
│   ├── GrantRefused        401  authentication_error: a grant that is not valid here and now; says why in `reason`
│   ├── Forbidden           403  permission_error: who asks is known, and may not
│   │   ├── Denied          the policy says no; `reason` is what the audit records
│   │   ├── AddressRefused  the address connected to is not a public one, and no setting opens it
│   │   ├── SessionClosed   the session has been closed: no secret is read and nothing is issued for it any more
│   │   └── AccessRefused   the secret store refuses this session's own identity (it lives, the policy says no)
│   ├── NotFound            404  not_found_error
│   │   └── SecretMissing   the credential has no secret (never written, or purged)
│   ├── Conflict            409  conflict_error
│   │   └── VersionConflict a compare-and-set lost: someone else has written since
│   ├── TooLarge            413  request_too_large
│   ├── RateLimited         429  rate_limit_error (with retry_after)
│   ├── Unreachable         502  api_error: the host on the other side does not answer
│   └── Unavailable         503  api_error: it cannot be done now; nothing was done
│       └── StoreUnavailable  the secret store is sealed, unreachable, or answers in error
└── ConfigError             a setting is wrong: the proxy refuses to start

A message is safe to show: it holds no secret, no token and no foreign response body.
"""

from typing import ClassVar, Final, Literal, TypeAlias

GrantReason: TypeAlias = Literal["missing", "malformed", "forged", "expired", "revoked", "unknown", "tunnel"]

_GRANT_MESSAGES: Final[dict[GrantReason, str]] = {
    "missing": "no grant: send it as `Authorization: Bearer` (on the egress door as `Proxy-Authorization`)",
    "malformed": "this is not a grant of this proxy",
    "forged": "this grant was not issued by this proxy, or was changed after it was issued",
    "expired": "this grant has expired: ask for a new one",
    "revoked": "this grant has been revoked",
    "unknown": "this proxy does not list this grant or its session, so it counts as revoked",
    "tunnel": "this grant is bound to another sandbox's tunnel",
}


class ProxyError(Exception):
    """Root of the tree. The message is safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(ProxyError):
    """Answered in the official envelope on /v1; the doors answer it in their own protocols."""

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


class GrantRefused(RequestError):
    """The grant does not count. The message tells the holder, `reason` tells the audit."""

    status = 401
    type = "authentication_error"

    def __init__(self, reason: GrantReason) -> None:
        super().__init__(_GRANT_MESSAGES[reason], error_code=f"grant_{reason}")
        self.reason: GrantReason = reason


class Forbidden(RequestError):
    status = 403
    type = "permission_error"


class Denied(Forbidden):
    """The policy says no. `reason` is a fixed word for the audit, the message is for people."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, error_code=reason)
        self.reason = reason


class AddressRefused(Forbidden):
    """A name resolved to an address that must not be connected to."""


class SessionClosed(Forbidden):
    """The session has been closed."""


class AccessRefused(Forbidden):
    """The secret store refuses the session's own identity."""


class NotFound(RequestError):
    status = 404
    type = "not_found_error"


class SecretMissing(NotFound):
    """There is no secret under this credential."""


class Conflict(RequestError):
    status = 409
    type = "conflict_error"


class VersionConflict(Conflict):
    """`expected` was not the current version. Nothing was written."""


class TooLarge(RequestError):
    status = 413
    type = "request_too_large"


class RateLimited(RequestError):
    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int, error_code: str | None = None) -> None:
        super().__init__(message, error_code=error_code)
        self.retry_after = retry_after


class Unreachable(RequestError):
    """The host on the other side cannot be reached, or broke off."""

    status = 502
    type = "api_error"


class Unavailable(RequestError):
    """It cannot be done now. Nothing was done, and the message says what must become right."""

    status = 503
    type = "api_error"


class StoreUnavailable(Unavailable):
    """The secret store is sealed, cannot be reached, or answers in error."""


class ConfigError(ProxyError):
    """A setting is wrong. The message names the setting and says what would be right."""
