"""Logging in to a server made with the `mcp` package, authorization server and all, and being let in by it."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from galley_vault_proxy.http.serving import serve
from galley_vault_proxy.secret import Secret
from mcp.server import MCPServer
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.integration.proxy_credentials_kit import broker

pytestmark = pytest.mark.anyio


class Provider(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Everybody agrees to everything; refresh tokens are good once."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.refreshing: dict[str, RefreshToken] = {}
        self.access: dict[str, AccessToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = AuthorizationCode(
            code=secrets.token_urlsafe(24),
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._tokens(client.client_id, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        return self.refreshing.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        del self.refreshing[refresh_token.token]
        return self._tokens(client.client_id, scopes, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.access.pop(token.token, None)

    def _tokens(self, client_id: str, scopes: list[str], resource: str | None) -> OAuthToken:
        access, refresh = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        about = {"client_id": client_id, "scopes": scopes, "resource": resource}
        self.access[access] = AccessToken.model_validate({"token": access, **about})
        self.refreshing[refresh] = RefreshToken.model_validate({"token": refresh, **about})
        return OAuthToken(access_token=access, refresh_token=refresh, expires_in=3600, scope=" ".join(scopes))


class Later:
    """An app that is there once its address is known."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)


@asynccontextmanager
async def package_server(provider: Provider) -> AsyncIterator[str]:
    later = Later()
    async with serve(later, host="127.0.0.1", port=0, key=Secret("k" * 20), closing=asyncio.Event()) as address:
        url = f"{address.url}/mcp"
        server = MCPServer(
            "notes",
            auth_server_provider=provider,
            auth=AuthSettings(
                issuer_url=AnyHttpUrl(address.url),
                resource_server_url=AnyHttpUrl(url),
                client_registration_options=ClientRegistrationOptions(
                    enabled=True, valid_scopes=["notes"], default_scopes=["notes"]
                ),
                required_scopes=["notes"],
                validate_token_resource=True,
            ),
        )
        later.app = server.streamable_http_app()
        async with server.session_manager.run():
            yield url


async def test_a_server_of_the_mcp_package_lets_the_credential_in(tmp_path: Path) -> None:
    provider = Provider()
    async with package_server(provider) as url, broker(tmp_path / "home") as proxy, proxy.sdk() as sdk:
        vault = await sdk.beta.vaults.create(display_name="Alice")
        async with proxy.http() as client:
            begun = await client.post("/v1/oauth/logins", json={"vault_id": vault.id, "mcp_server_url": url})
            assert begun.status_code == 200, begun.text
            async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
                page = await browser.get(begun.json()["url"])
            assert page.status_code == 200, page.text
            done = (await client.get(f"/v1/oauth/logins/{begun.json()['id']}")).json()
        credentials = sdk.beta.vaults.credentials
        told = await credentials.mcp_oauth_validate(done["credential_id"], vault_id=vault.id)
        assert told.status == "valid", told
        # The server forgets the token: it is renewed, and good again.
        provider.access.clear()
        told = await credentials.mcp_oauth_validate(done["credential_id"], vault_id=vault.id)
        assert told.refresh is not None
        assert (told.status, told.refresh.status) == ("valid", "succeeded")
        # It ends: the next request of a session renews it.
        proxy.clock.ahead = timedelta(minutes=59, seconds=30)
        session = await proxy.session(vault.id)
        found = await proxy.source.for_mcp(session, [vault.id], url)
        assert found is not None
        assert found.value.reveal().removeprefix("Bearer ") in provider.access
        assert len(provider.access) == 2
        # And when nothing helps any more, it says so.
        provider.access.clear()
        provider.refreshing.clear()
        told = await credentials.mcp_oauth_validate(done["credential_id"], vault_id=vault.id)
        assert told.refresh is not None
        assert (told.status, told.refresh.status) == ("invalid", "failed")
