"""The fields of a credential's secret as the store keeps them, and when a token is due. No I/O here."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from galley_vault_proxy.credentials.shapes import AuthCreate, BearerCreate, OAuthCreate, VariableCreate
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.port import Material

TOKEN: Final = "token"
ACCESS: Final = "access_token"
REFRESH: Final = "refresh_token"
CLIENT: Final = "client_secret"
VALUE: Final = "secret_value"
# No secrets, but they must change in one step with the token that they are about.
EXPIRES: Final = "expires_at"
RENEW: Final = "renew_at"

OAUTH_FIELDS: Final = (ACCESS, REFRESH, CLIENT, EXPIRES, RENEW)

_EARLY: Final = timedelta(seconds=60)


def created(auth: AuthCreate, now: datetime) -> dict[str, Secret]:
    match auth:
        case OAuthCreate():
            fields = {ACCESS: auth.access_token, **present(expiry(auth.expires_at, now))}
            if auth.refresh is not None:
                fields[REFRESH] = auth.refresh.refresh_token
                if auth.refresh.token_endpoint_auth.type != "none":
                    fields[CLIENT] = auth.refresh.token_endpoint_auth.client_secret
            return fields
        case BearerCreate():
            return {TOKEN: auth.token}
        case VariableCreate():
            return {VALUE: auth.secret_value}


def expiry(expires_at: datetime | None, now: datetime) -> dict[str, Secret | None]:
    """When a token ends, and when a new one is fetched: a minute before, or sooner for a short-lived one."""
    if expires_at is None:
        return {EXPIRES: None, RENEW: None}
    early = min(_EARLY, (expires_at - now) / 4)
    return {EXPIRES: Secret(expires_at.isoformat()), RENEW: Secret((expires_at - early).isoformat())}


def present(fields: Mapping[str, Secret | None]) -> dict[str, Secret]:
    return {name: value for name, value in fields.items() if value is not None}


def expires_at(material: Material) -> datetime | None:
    return _moment(material, EXPIRES)


def due(material: Material, now: datetime) -> bool:
    """Whether it is time for a new token. A secret written by hand may know its end only."""
    at = _moment(material, RENEW)
    if at is None:
        end = _moment(material, EXPIRES)
        at = None if end is None else end - _EARLY
    return at is not None and at <= now


def token_of(material: Material) -> Secret | None:
    """What goes to an MCP server. None: there is none, or none that fits a header."""
    found = material.fields.get(ACCESS) or material.fields.get(TOKEN)
    # Written by hand, e.g. from a file, it may end in a line break.
    text = "" if found is None else found.reveal().strip()
    return Secret(text) if text and text.isascii() and text.isprintable() else None


def all_secrets(material: Material) -> tuple[Secret, ...]:
    """Everything in it that must not come back."""
    return tuple(value for name, value in material.fields.items() if name not in (EXPIRES, RENEW))


def _moment(material: Material, name: str) -> datetime | None:
    found = material.fields.get(name)
    if found is None:
        return None
    try:
        at = datetime.fromisoformat(found.reveal())
    except ValueError:
        return None  # written by hand, and not a time: then the server says when the token has ended
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
