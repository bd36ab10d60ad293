"""Asking a token endpoint: how the client says who it is, and what the answer means. Secrets leave it in no error."""

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, quote_plus

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from galley_vault_proxy.credentials import material
from galley_vault_proxy.credentials.scrub import scrubbed
from galley_vault_proxy.credentials.shapes import EndpointAuth, HttpResponseShown
from galley_vault_proxy.oauth.outside import Answer, Outside, endpoint
from galley_vault_proxy.secret import Secret

_LONGEST_S: Final = 10 * 365 * 86_400
_FIRST_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, where, and how it proves that."""

    token_endpoint: str
    client_id: str
    auth: EndpointAuth
    secret: Secret | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was granted. `refresh` None: none came, so the one before stays."""

    access: Secret
    refresh: Secret | None
    expires_at: datetime | None
    scope: str | None

    def fields(self, now: datetime) -> dict[str, Secret | None]:
        """The fields of the credential's secret that become others."""
        found: dict[str, Secret | None] = {material.ACCESS: self.access, **material.expiry(self.expires_at, now)}
        if self.refresh is not None:
            found[material.REFRESH] = self.refresh
        return found


@dataclass(frozen=True, slots=True)
class Refused:
    """No token. `error` is OAuth's own word, if it is one; `passing`: it may work later."""

    error: str
    passing: bool
    response: HttpResponseShown
    retry_after_s: float | None


class _Granted(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    access_token: str
    token_type: str = "bearer"
    expires_in: float | None = None
    refresh_token: str | None = None
    scope: str | None = None

    @field_validator("access_token")
    @classmethod
    def _fits_a_header(cls, text: str) -> str:
        if not text.isascii() or not text.isprintable() or not text or " " in text:
            raise ValueError("not a token")
        return text

    @field_validator("token_type")
    @classmethod
    def _bearer(cls, text: str) -> str:
        if text.lower() != "bearer":
            raise ValueError("not a bearer token")
        return text

    @field_validator("expires_in", "refresh_token", "scope", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: object) -> object:
        return None if value == "" else value


async def ask(
    outside: Outside, client: Client, form: Mapping[str, str], *, now: datetime, hide: Collection[Secret] = ()
) -> Tokens | Refused:
    """Send one token request. `hide`: what else must not be in a refusal.

    Raises AddressRefused, Unreachable, or InvalidRequest when the endpoint is one that secrets may not be sent to.
    """
    url = endpoint(client.token_endpoint, "the token endpoint")
    form, headers = _authenticated(client, form)
    answer = await outside.post_form(url, form, headers)
    secret = () if client.secret is None else (client.secret,)
    return _meaning(answer, now, (*secret, *hide))


def _authenticated(client: Client, form: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    secret = "" if client.secret is None else client.secret.reveal()
    match client.auth:
        case "none":
            return {**form, "client_id": client.client_id}, {}
        case "client_secret_post":
            return {**form, "client_id": client.client_id, "client_secret": secret}, {}
        case "client_secret_basic":
            # RFC 6749, section 2.3.1: each part is form-encoded first.
            pair = f"{quote_plus(client.client_id)}:{quote_plus(secret)}"
            # Said in the form too: the servers of MCP's own SDK look for it there.
            return {**form, "client_id": client.client_id}, {
                "authorization": "Basic " + base64.b64encode(pair.encode()).decode()
            }


def _meaning(answer: Answer, now: datetime, hide: Collection[Secret]) -> Tokens | Refused:
    fields = _fields(answer)
    if 200 <= answer.status < 300 and answer.whole and "error" not in fields:
        try:
            granted = _Granted.model_validate(fields)
        except ValidationError:
            return _refused("unusable_answer", answer, hide)
        return Tokens(
            access=Secret(granted.access_token),
            refresh=None if granted.refresh_token is None else Secret(granted.refresh_token),
            expires_at=_end(granted.expires_in, now),
            scope=granted.scope,
        )
    # Some answer 200 with an error in it.
    return _refused(error_word(fields.get("error")), answer, hide)


def _refused(error: str, answer: Answer, hide: Collection[Secret]) -> Refused:
    retry = answer.headers.get("retry-after", "")
    return Refused(
        error=error,
        passing=answer.status in (408, 425, 429) or answer.status >= _FIRST_SERVER_ERROR or answer.status < 200,
        response=scrubbed(answer.status, str(answer.headers.get("content-type", "")), answer.body, hide),
        retry_after_s=float(retry) if retry.isascii() and retry.isdigit() and len(retry) < 6 else None,
    )


def error_word(value: object) -> str:
    """An error code as RFC 6749 allows it, in our own bounds; anything else is not repeated."""
    if isinstance(value, str) and 0 < len(value) <= 64 and value.replace("_", "").isalnum() and value.isascii():
        return value.lower()
    return "unspecified"


def _end(seconds: float | None, now: datetime) -> datetime | None:
    if seconds is None or not 0 <= seconds <= _LONGEST_S:
        return None
    return now + timedelta(seconds=seconds)


def _fields(answer: Answer) -> dict[str, object]:
    """An object, or what some servers send whatever they are asked for: a form."""
    try:
        text = answer.body.decode("utf-8")
        if answer.media_type == "application/x-www-form-urlencoded":
            return dict(parse_qsl(text, max_num_fields=50))
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
