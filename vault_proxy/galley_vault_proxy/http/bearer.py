"""The grant that a request to a door carries, and the tunnel that it came through. Nothing is verified here."""

import base64
import binascii
from collections.abc import Iterable
from typing import Final

from starlette.types import Scope

from galley_vault_proxy.errors import GrantRefused
from galley_vault_proxy.grant.token import MAX_TOKEN
from galley_vault_proxy.http.connection import TUNNEL

_LONGEST: Final = MAX_TOKEN * 2


def grant_in(headers: Iterable[tuple[bytes, bytes]], *, header: bytes = b"authorization") -> str:
    """The token in `header`: a bearer token, or the password of a Basic one, which is all that some clients can send.

    Raises GrantRefused when there is none, or more than one: whatever stands in front may have looked at the other.
    """
    found = [value for name, value in headers if name.lower() == header]
    if not found:
        raise GrantRefused("missing")
    if len(found) > 1 or len(found[0]) > _LONGEST:
        raise GrantRefused("malformed")
    kind, _, rest = found[0].decode("latin-1").strip().partition(" ")
    match kind.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            return _password(rest.strip())
        case _:
            raise GrantRefused("malformed")


def tunnel_of(scope: Scope) -> str | None:
    """The tunnel whose greeting opened the connection; None for a connection that came through none."""
    found = scope.get("state", {}).get(TUNNEL)
    return None if found is None else str(found)


def _password(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode("ascii").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise GrantRefused("malformed") from None
