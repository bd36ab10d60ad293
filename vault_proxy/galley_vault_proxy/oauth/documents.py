"""The metadata documents that OAuth servers publish, where they lie, and what in them is believed. No I/O here."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from galley_vault_proxy.credentials.urls import normal_url, origin
from galley_vault_proxy.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Word = Annotated[str, StringConstraints(max_length=512)]
Words = Annotated[list[Word], Field(max_length=1000)]

_MAX_SCOPE: Final = 4096
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+( [!#-\[\]-~]+)*")


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class ResourceMetadata(_Document):
    """RFC 9728: what protects an MCP server."""

    resource: Url
    authorization_servers: Annotated[list[Url], Field(max_length=16)] = []
    scopes_supported: Words | None = None


class ServerMetadata(_Document):
    """RFC 8414, and the same fields of OpenID Connect: an authorization server."""

    issuer: Url
    authorization_endpoint: Url
    token_endpoint: Url
    registration_endpoint: Url | None = None
    scopes_supported: Words | None = None
    response_types_supported: Words | None = None
    grant_types_supported: Words | None = None
    token_endpoint_auth_methods_supported: Words | None = None
    code_challenge_methods_supported: Words | None = None
    client_id_metadata_document_supported: bool | None = None
    authorization_response_iss_parameter_supported: bool | None = None


class Registered(_Document):
    """RFC 7591: what became of a registration. A placeholder ("" or null) counts as absent."""

    client_id: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    client_secret: Annotated[str, StringConstraints(max_length=16384)] | None = None
    token_endpoint_auth_method: str | None = None


class Challenge(_Document):
    """What a 401 says in `WWW-Authenticate`."""

    resource_metadata: str | None = None
    scope: str | None = None


def parsed(model: type[M], raw: bytes) -> M | None:
    """None when it is not such a document."""
    try:
        return model.model_validate(json.loads(raw))
    except (ValueError, RecursionError, ValidationError):
        return None


def resource_urls(server_url: str, challenged: str | None) -> list[str]:
    """Where a server's protected-resource metadata may lie, the likeliest first."""
    parts = urlsplit(server_url)
    base = origin(server_url)
    path = parts.path.rstrip("/")
    found = [challenged] if challenged else []
    if path:
        found.append(f"{base}/.well-known/oauth-protected-resource{path}")
    found.append(f"{base}/.well-known/oauth-protected-resource")
    return list(dict.fromkeys(found))


def server_urls(issuer: str) -> list[str]:
    """Where an authorization server's metadata may lie: RFC 8414 first, then OpenID Connect in both its forms."""
    base, path = origin(issuer), urlsplit(issuer).path.rstrip("/")
    found = [
        f"{base}/.well-known/oauth-authorization-server{path}",
        f"{base}/.well-known/openid-configuration{path}",
        f"{base}{path}/.well-known/openid-configuration",
    ]
    return list(dict.fromkeys(found))


def covers(resource: str, server_url: str) -> bool:
    """Whether metadata about `resource` is about this server: itself, or something above it on the same origin."""
    try:
        if origin(resource) != origin(server_url):
            return False
        above, below = (urlsplit(normal_url(url)).path.rstrip("/") + "/" for url in (resource, server_url))
    except ValueError:
        return False
    return below.startswith(above)


def same_issuer(claimed: str, expected: str) -> bool:
    """Simple comparison, as RFC 8414 asks; only a root may be written with or without its slash."""
    if claimed == expected:
        return True
    shorter, longer = sorted((claimed, expected), key=len)
    return longer == f"{shorter}/" and urlsplit(shorter).path == ""


def challenge(headers: Iterable[str]) -> Challenge:
    """Read `WWW-Authenticate`. Every server writes it in its own way, so only what is needed is looked for."""
    text = ", ".join(headers)[:8192]
    return Challenge(resource_metadata=_parameter(text, "resource_metadata"), scope=_parameter(text, "scope"))


def scope_for(
    asked: str | None, challenged: str | None, resource: ResourceMetadata | None, server: ServerMetadata
) -> str | None:
    """Which scopes to ask for: what the operator says, what the server demands, or what it offers.

    `offline_access` is added where it is known: without it some servers give no refresh token. Raises InvalidRequest.
    """
    found = asked or challenged or " ".join((resource and resource.scopes_supported) or ()) or None
    if found is not None and (not _SCOPE.fullmatch(found) or len(found) > _MAX_SCOPE):
        raise InvalidRequest("scope: the server asks for scopes that are not words with blanks between; give them")
    if "offline_access" in (server.scopes_supported or ()) and "offline_access" not in (found or "").split():
        found = f"{found} offline_access" if found else None
    return found


def require_usable(server: ServerMetadata) -> None:
    """Raise InvalidRequest unless it does the one flow that is safe: a code, with PKCE S256."""
    name = server.issuer[:200]
    if "S256" not in (server.code_challenge_methods_supported or ()):
        raise InvalidRequest(
            f"{name} does not say that it supports PKCE with S256 (code_challenge_methods_supported), "
            "without which a code can be stolen: MCP forbids to go on"
        )
    if not _lists(server.response_types_supported, "code"):
        raise InvalidRequest(f"{name} does not give codes (response_types_supported)")
    if not _lists(server.grant_types_supported, "authorization_code"):
        raise InvalidRequest(f"{name} does not take codes (grant_types_supported)")


def _lists(offered: Sequence[str] | None, wanted: str) -> bool:
    return offered is None or wanted in offered


def _parameter(text: str, name: str) -> str | None:
    found = re.search(rf'(?:^|[\s,]){name}\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))', text, re.IGNORECASE)
    if found is None:
        return None
    quoted = found[1]
    return (re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else found[2]) or None
