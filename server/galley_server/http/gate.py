"""Who may come in: the API key, as `x-api-key` or as a bearer token."""

from collections.abc import Iterable

from galley_server.errors import Unauthenticated
from galley_server.secret import Secret


def admit(headers: Iterable[tuple[bytes, bytes]], api_key: Secret) -> None:
    """Raise Unauthenticated unless one of the headers carries the key.

    The SDKs may send both, the second for another server's sake, so one right key is enough.
    """
    offered = False
    for name, value in headers:
        if name == b"x-api-key":
            candidate = value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            candidate = value[7:].strip()
        else:
            continue
        offered = True
        if api_key.matches(candidate.decode("latin-1")):
            return
    if offered:
        raise Unauthenticated("invalid API key: send this server's own key, not one of another endpoint")
    raise Unauthenticated("missing API key: send it as `x-api-key` or as `Authorization: Bearer`")
