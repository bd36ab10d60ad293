"""From the URL of an MCP server to what a client must know: who authorises for it, and who we are there."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from galley_vault_proxy.credentials.probe import MODERN
from galley_vault_proxy.credentials.scrub import scrubbed
from galley_vault_proxy.credentials.shapes import EndpointAuth
from galley_vault_proxy.credentials.urls import normal_url, origin
from galley_vault_proxy.errors import InvalidRequest, Unreachable
from galley_vault_proxy.oauth.documents import (
    Challenge,
    Registered,
    ResourceMetadata,
    ServerMetadata,
    challenge,
    covers,
    parsed,
    require_usable,
    resource_urls,
    same_issuer,
    scope_for,
    server_urls,
)
from galley_vault_proxy.oauth.outside import Outside, endpoint
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import is_loopback

CLIENT_NAME: Final = "Galley vault proxy"
_METHODS: Final[tuple[EndpointAuth, ...]] = ("none", "client_secret_basic", "client_secret_post")


@dataclass(frozen=True, slots=True)
class Found:
    """What protects a server. `resource` is what tokens must be for (RFC 8707)."""

    server: ServerMetadata
    resource: str
    scope: str | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are at an authorization server."""

    client_id: str
    auth: EndpointAuth
    secret: Secret | None


async def discover(outside: Outside, server_url: str, *, scope: str | None) -> Found:
    """Raises InvalidRequest with the reason it cannot be done, AddressRefused, Unreachable."""
    challenged = await _challenge(outside, server_url)
    resource = await _resource(outside, server_url, challenged.resource_metadata)
    # A server of the first protocol version has no such metadata, and is its own authorization server.
    issuer = resource.authorization_servers[0] if resource and resource.authorization_servers else origin(server_url)
    server = await _server(outside, issuer)
    require_usable(server)
    endpoint(server.authorization_endpoint, "authorization_endpoint")
    endpoint(server.token_endpoint, "token_endpoint")
    return Found(
        server=server,
        resource=resource.resource if resource else normal_url(server_url),
        scope=scope_for(scope, challenged.scope, resource, server),
    )


async def _challenge(outside: Outside, server_url: str) -> Challenge:
    """Ask without a token: the refusal says where to go."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}).encode()
    answer = await outside.post(
        server_url,
        {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": MODERN,
            "mcp-method": "server/discover",
        },
        body,
    )
    if answer.status not in (401, 403):
        return Challenge()
    return challenge(str(value) for value in answer.headers.get_list("www-authenticate"))


async def _resource(outside: Outside, server_url: str, challenged: str | None) -> ResourceMetadata | None:
    for url in resource_urls(server_url, challenged):
        endpoint(url, "resource_metadata")
        answer = await outside.get(url, {"mcp-protocol-version": MODERN})
        if answer.status != 200:
            continue
        found = parsed(ResourceMetadata, answer.body)
        if found is None:
            continue
        if not covers(found.resource, server_url):
            # Tokens for another resource would be taken to it, or be refused here.
            raise InvalidRequest(
                f"{urlsplit(url).hostname} publishes metadata of another resource than {origin(server_url)}: "
                "RFC 9728 forbids to use it"
            )
        return found
    return None


async def _server(outside: Outside, issuer: str) -> ServerMetadata:
    endpoint(issuer, "authorization_servers")
    for url in server_urls(issuer):
        answer = await outside.get(url, {"mcp-protocol-version": MODERN})
        if answer.status >= 500:
            raise Unreachable(f"{urlsplit(url).hostname} answers {answer.status} when asked for its metadata")
        found = parsed(ServerMetadata, answer.body) if answer.status == 200 else None
        if found is None:
            continue
        if not same_issuer(found.issuer, issuer):
            raise InvalidRequest(
                f"{urlsplit(url).hostname} publishes metadata of another issuer than the one it was asked for: "
                "RFC 8414 forbids to use it"
            )
        return found
    raise InvalidRequest(
        f"{urlsplit(issuer).hostname} publishes no authorization server metadata: "
        "this server does not offer OAuth, or not as MCP asks for it"
    )


async def identify(
    outside: Outside, server: ServerMetadata, *, base_url: str, redirect_uri: str, scope: str | None
) -> Identity:
    """Who to be where nobody registered us before: our own metadata document if it takes that, else registered now.

    Raises InvalidRequest, AddressRefused, Unreachable.
    """
    document = client_document_url(base_url)
    if server.client_id_metadata_document_supported and _is_public(base_url):
        return Identity(document, "none", None)
    if server.registration_endpoint is None:
        raise InvalidRequest(
            f"{server.issuer[:200]} takes no registrations: register a client there with the redirect URI "
            f"{redirect_uri}, and give its client_id (and client_secret)"
        )
    return await _register(outside, server, redirect_uri, scope)


def client_document_url(base_url: str) -> str:
    return f"{base_url}/oauth/client.json"


def client_document(base_url: str, redirect_uri: str) -> dict[str, object]:
    """Our client-id metadata document: what its own URL says of us."""
    return {"client_id": client_document_url(base_url), "client_uri": base_url, **_about(redirect_uri, "none")}


async def _register(outside: Outside, server: ServerMetadata, redirect_uri: str, scope: str | None) -> Identity:
    url = endpoint(server.registration_endpoint or "", "registration_endpoint")
    about = _about(redirect_uri, _method(server.token_endpoint_auth_methods_supported))
    if scope:
        about["scope"] = scope
    answer = await outside.post(
        url, {"content-type": "application/json", "accept": "application/json"}, json.dumps(about).encode()
    )
    if answer.status not in (200, 201):
        shown = scrubbed(answer.status, "", answer.body[:500], ())
        raise InvalidRequest(
            f"{urlsplit(url).hostname} refused to register this client ({answer.status}): {shown.body[:300]}"
        )
    found = parsed(Registered, answer.body)
    if found is None:
        raise InvalidRequest(f"{urlsplit(url).hostname} answered a registration without a client_id")
    return _identity(urlsplit(url).hostname, found)


def _identity(host: str | None, found: Registered) -> Identity:
    """The server may have decided otherwise than we asked; RFC 7591 leaves it to us whether we can live with that."""
    secret = Secret(found.client_secret) if found.client_secret else None
    method = found.token_endpoint_auth_method or ("none" if secret is None else "client_secret_basic")
    for auth in _METHODS:
        if auth == method:
            if auth != "none" and secret is None:
                raise InvalidRequest(f"{host} registered this client for {auth}, and gave no client secret")
            return Identity(found.client_id, auth, None if auth == "none" else secret)
    raise InvalidRequest(f"{host} registered this client for a token_endpoint_auth_method that it cannot do")


def _about(redirect_uri: str, auth: EndpointAuth) -> dict[str, object]:
    return {
        "client_name": CLIENT_NAME,
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": auth,
        "application_type": "native" if is_loopback(urlsplit(redirect_uri).hostname or "") else "web",
    }


def _method(offered: Sequence[str] | None) -> EndpointAuth:
    # Where nothing is said it is Basic (RFC 8414). A secret would lie beside the token that it protects.
    for auth in _METHODS:
        if auth in (offered or ("client_secret_basic",)):
            return auth
    raise InvalidRequest("the token endpoint takes none of: none, client_secret_basic, client_secret_post")


def _is_public(base_url: str) -> bool:
    """Whether an authorization server could read our document."""
    parts = urlsplit(base_url)
    return parts.scheme == "https" and not is_loopback(parts.hostname or "")
