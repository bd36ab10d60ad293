"""`/v1/oauth/logins` for whoever begins a login, and, behind no key, what a browser and an authorization server ask."""

import html
import json
from typing import Annotated, Final, Literal
from urllib.parse import parse_qsl

from pydantic import AfterValidator, StringConstraints
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from galley_vault_proxy.credentials.bodies import read
from galley_vault_proxy.credentials.shapes import (
    ClientSecret,
    Moment,
    Name,
    Plain,
    Url,
    server_url,
)
from galley_vault_proxy.errors import RequestError
from galley_vault_proxy.http.answer import resource
from galley_vault_proxy.http.bearer import tunnel_of
from galley_vault_proxy.http.boundary import Operation, Paths
from galley_vault_proxy.http.call import Call
from galley_vault_proxy.http.validation import Strict
from galley_vault_proxy.oauth.discovery import client_document
from galley_vault_proxy.oauth.logins import CALLBACK, Ended, Logins, Wanted
from galley_vault_proxy.oauth.rows import Login, LoginStatus

_MAX_QUERY: Final = 16 * 1024


class LoginCreate(Strict):
    """`POST /v1/oauth/logins`. The client is given where we are registered already; else we see to it ourselves."""

    vault_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    mcp_server_url: Annotated[Url, AfterValidator(server_url)]
    scope: Plain | None = None
    client_id: Annotated[Plain, StringConstraints(min_length=1)] | None = None
    client_secret: ClientSecret | None = None
    display_name: Name | None = None


class Redirected(Strict):
    """`POST /v1/oauth/logins/{id}/redirect`: the address that a browser was sent to and could not open."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=_MAX_QUERY)]


class LoginShown(Strict):
    """`url` is shown once, to whoever began the login."""

    type: Literal["oauth_login"] = "oauth_login"
    id: str
    vault_id: str
    mcp_server_url: str
    issuer: str
    status: LoginStatus | Literal["expired"]
    error: str | None
    credential_id: str | None
    created_at: Moment
    expires_at: Moment
    url: str | None = None


class LoginFace:
    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    def paths(self) -> Paths:
        return {
            "/v1/oauth/logins": {"POST": Operation(self._begin)},
            "/v1/oauth/logins/{login_id}": {"GET": Operation(self._retrieve)},
            "/v1/oauth/logins/{login_id}/redirect": {"POST": Operation(self._redirected)},
        }

    def doors(self) -> list[BaseRoute]:
        """Routes that are behind no key."""
        return [
            Route(CALLBACK, _Callback(self._logins), methods=["GET"]),
            Route("/oauth/client.json", _ClientDocument(self._logins), methods=["GET"]),
        ]

    async def _begin(self, call: Call) -> ASGIApp:
        asked = read(LoginCreate, await call.body())
        begun = await self._logins.begin(
            Wanted(
                vault_id=asked.vault_id,
                mcp_server_url=asked.mcp_server_url,
                scope=asked.scope or None,
                client_id=asked.client_id,
                client_secret=asked.client_secret,
                display_name=asked.display_name,
            )
        )
        return resource(_shown(begun.login, self._logins).model_copy(update={"url": begun.url}))

    async def _retrieve(self, call: Call) -> ASGIApp:
        return resource(_shown(await self._logins.retrieve(call.param("login_id")), self._logins))

    async def _redirected(self, call: Call) -> ASGIApp:
        login_id = call.param("login_id")
        asked = read(Redirected, await call.body())
        await self._logins.redirected(login_id, asked.url)
        return resource(_shown(await self._logins.retrieve(login_id), self._logins))


class _Callback:
    """Where the browser comes back to. It is answered with a page, and sent nowhere."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if tunnel_of(scope) is not None or scope["method"] != "GET":
            await _page(send, 404, "There is nothing here.")
            return
        query = _query(scope["query_string"])
        if query is None:
            await _page(send, 400, "This address is not one that an authorization server sends anybody to.")
            return
        try:
            ended = await self._logins.ended(query)
        except RequestError as error:
            ended = Ended(False, error.message)
        await _page(send, 200 if ended.ok else 400, ended.message)


class _ClientDocument:
    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if tunnel_of(scope) is not None or scope["method"] != "GET":
            await _page(send, 404, "There is nothing here.")
            return
        document = client_document(self._logins.base_url, self._logins.redirect_uri)
        body = json.dumps(document).encode()
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"max-age=3600")]
        await _send(send, 200, headers, body)


def _query(raw: bytes) -> dict[str, str] | None:
    """None when it is too large, or says something twice: two readers would take two values."""
    if len(raw) > _MAX_QUERY:
        return None
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return None
    found = dict(pairs)
    return found if len(found) == len(pairs) else None


def _shown(login: Login, logins: Logins) -> LoginShown:
    over = login.status == "pending" and login.expires_at <= logins.now
    return LoginShown(
        id=login.id,
        vault_id=login.vault_id,
        mcp_server_url=login.mcp_server_url,
        issuer=login.issuer,
        status="expired" if over else login.status,
        error=login.error,
        credential_id=login.credential_id,
        created_at=login.created_at,
        expires_at=login.expires_at,
    )


async def _page(send: Send, status: int, message: str) -> None:
    body = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Galley</title>"
        f"<body style='font:1.1em system-ui;margin:4em auto;max-width:32em'><p>{html.escape(message)}</p></body></html>"
    ).encode(errors="replace")
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (b"x-frame-options", b"DENY"),
        (b"x-content-type-options", b"nosniff"),
        # The address of this page holds a code.
        (b"referrer-policy", b"no-referrer"),
    ]
    await _send(send, status, headers, body)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
