"""The official shapes of vaults and credentials: what is taken, and what is shown. Nothing that is shown is secret."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, PlainSerializer, StringConstraints, model_validator
from pydantic_core import CoreSchema, core_schema

from galley_vault_proxy.credentials.bodies import ByType, shown
from galley_vault_proxy.credentials.urls import MAX_URL, STDIO, normal_url, server_key, without_query
from galley_vault_proxy.hosts import normal_pattern
from galley_vault_proxy.http.validation import RuleBroken, Strict
from galley_vault_proxy.secret import Secret

Kind: TypeAlias = Literal["mcp_oauth", "static_bearer", "environment_variable"]
EndpointAuth: TypeAlias = Literal["none", "client_secret_basic", "client_secret_post"]

MAX_PAIRS: Final = 16
MAX_KEY: Final = 64
MAX_VALUE: Final = 512
MAX_HOSTS: Final = 16
MAX_TOKEN: Final = 16 * 1024
MAX_SECRET: Final = 64 * 1024

_TOKEN: Final = re.compile(r"[!-~]+")
_VISIBLE: Final = re.compile(r"[ -~]+")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _bag(bag: Mapping[str, str | None]) -> Any:
    if len(bag) > MAX_PAIRS and None not in bag.values():
        raise RuleBroken(f"Metadata should have at most {MAX_PAIRS} pairs (got {len(bag)})")
    for key, value in bag.items():
        if not key:
            raise RuleBroken("Keys should not be empty")
        if len(key) > MAX_KEY:
            raise RuleBroken(f"Key should have at most {MAX_KEY} characters (got {len(key)})", key)
        if value is not None and len(value) > MAX_VALUE:
            raise RuleBroken(f"Value should have at most {MAX_VALUE} characters (got {len(value)})", key)
    return bag


def server_url(url: str) -> str:
    try:
        normal_url(url)
    except ValueError:
        raise RuleBroken(
            "Give an http or https URL without user name and fragment, in printable ASCII "
            f"(got {shown(without_query(url))})"
        ) from None
    return url


def _any_server_url(url: str) -> str:
    return url if STDIO.fullmatch(url) else server_url(url)


def _token(text: str) -> str:
    # It goes into a header: a line break in it would begin another one.
    if not _TOKEN.fullmatch(text):
        raise RuleBroken("Give the token alone, in printable ASCII without blanks and without `Bearer` before it")
    return text


def _visible(text: str) -> str:
    if text and not _VISIBLE.fullmatch(text):
        raise RuleBroken("Use printable ASCII")
    return text


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise RuleBroken("Use letters, digits and _, and no digit first: it becomes an environment variable")
    return name


def _host(host: str) -> str:
    right = "Give a host name, an IPv4 address, or *.example.com; no scheme, port, path or IPv6 address"
    try:
        if ":" in normal_pattern(host):
            raise ValueError("IPv6")
    except ValueError:
        raise RuleBroken(f"{right} (got {shown(without_query(host))})") from None
    return host


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise RuleBroken("Give a time zone, e.g. 2026-01-31T12:00:00Z")
    at = at.astimezone(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Hidden:
    """`Annotated[Secret, Hidden(...)]`: a text that is hidden as soon as it is read, so no model ever prints it."""

    longest: int
    rule: Callable[[str], str] = str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(min_length=1, max_length=self.longest, strict=True)
        return core_schema.no_info_after_validator_function(lambda value: Secret(self.rule(value)), text)


@dataclass(frozen=True, slots=True)
class Locked:
    """`Annotated[None, Locked()]`: a field that an update must not name."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def refuse(value: object) -> NoReturn:
            raise RuleBroken("Cannot be changed after the credential is created: archive it and make another")

        return core_schema.no_info_plain_validator_function(refuse)


Moment: TypeAlias = Annotated[datetime, Field(strict=False), AfterValidator(_utc), PlainSerializer(_rfc3339)]
Metadata: TypeAlias = Annotated[dict[str, str], AfterValidator(_bag)]
MetadataPatch: TypeAlias = Annotated[dict[str, str | None], AfterValidator(_bag)]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Url: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL)]
Plain: TypeAlias = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_visible)]
Token: TypeAlias = Annotated[Secret, Hidden(MAX_TOKEN, _token)]
ClientSecret: TypeAlias = Annotated[Secret, Hidden(MAX_TOKEN, _visible)]
Value: TypeAlias = Annotated[Secret, Hidden(MAX_SECRET)]
Fixed: TypeAlias = Annotated[None, Locked()]


class VaultCreate(Strict):
    display_name: Name
    metadata: Metadata = Field(default_factory=dict)


class VaultUpdate(Strict):
    """A name that is null stays: a vault has always one."""

    display_name: Name | None = None
    metadata: MetadataPatch | None = None


class ListParams(Strict):
    include_archived: bool = False
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    page: Annotated[str, StringConstraints(max_length=128)] | None = None


class NoAuthParam(Strict):
    type: Literal["none"]


class BasicAuthParam(Strict):
    type: Literal["client_secret_basic"]
    client_secret: ClientSecret


class PostAuthParam(Strict):
    type: Literal["client_secret_post"]
    client_secret: ClientSecret


class RefreshParam(Strict):
    client_id: Annotated[Plain, StringConstraints(min_length=1)]
    refresh_token: ClientSecret
    token_endpoint: Annotated[Url, AfterValidator(server_url)]
    token_endpoint_auth: Annotated[NoAuthParam | BasicAuthParam | PostAuthParam, ByType()]
    resource: Plain | None = None
    scope: Plain | None = None


class OAuthCreate(Strict):
    type: Literal["mcp_oauth"]
    mcp_server_url: Annotated[Url, AfterValidator(server_url)]
    access_token: Token
    expires_at: Moment | None = None
    refresh: RefreshParam | None = None


class BearerCreate(Strict):
    """`mcp_server_url` may be `stdio:NAME` too, for a server that the proxy runs itself."""

    type: Literal["static_bearer"]
    mcp_server_url: Annotated[Url, AfterValidator(_any_server_url)]
    token: Token


class UnrestrictedNetworking(Strict):
    type: Literal["unrestricted"]


class LimitedNetworking(Strict):
    type: Literal["limited"]
    allowed_hosts: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=255), AfterValidator(_host)], ...],
        Field(min_length=1, max_length=MAX_HOSTS),
    ]


Networking: TypeAlias = Annotated[UnrestrictedNetworking | LimitedNetworking, ByType()]


class LocationParam(Strict):
    """Where the secret may go. A place that is not named is a no."""

    header: bool = False
    body: bool = False

    @model_validator(mode="after")
    def _somewhere(self) -> "LocationParam":
        if not (self.header or self.body):
            raise RuleBroken("At least one of header and body must be true")
        return self


class LocationPatch(Strict):
    """A place that is not named keeps its setting."""

    header: bool = Field(default=False)
    body: bool = Field(default=False)


class VariableCreate(Strict):
    type: Literal["environment_variable"]
    secret_name: Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_variable)]
    secret_value: Value
    networking: Networking
    injection_location: LocationParam = LocationParam(header=True, body=True)


AuthCreate: TypeAlias = Annotated[OAuthCreate | BearerCreate | VariableCreate, ByType()]


class CredentialCreate(Strict):
    auth: AuthCreate
    display_name: Annotated[str, StringConstraints(max_length=255)] | None = None
    metadata: Metadata = Field(default_factory=dict)


class SecretAuthPatch(Strict):
    """The stored type stays, even if the other one is sent."""

    type: Literal["client_secret_basic", "client_secret_post"]
    client_secret: ClientSecret | None = None


class RefreshPatch(Strict):
    client_id: Fixed = None
    token_endpoint: Fixed = None
    resource: Fixed = None
    refresh_token: ClientSecret | None = None
    scope: Plain | None = None
    token_endpoint_auth: SecretAuthPatch | None = None


class OAuthUpdate(Strict):
    type: Literal["mcp_oauth"]
    mcp_server_url: Fixed = None
    access_token: Token | None = None
    expires_at: Moment | None = None
    refresh: RefreshPatch | None = None


class BearerUpdate(Strict):
    type: Literal["static_bearer"]
    mcp_server_url: Fixed = None
    token: Token | None = None


class VariableUpdate(Strict):
    type: Literal["environment_variable"]
    secret_name: Fixed = None
    secret_value: Value | None = None
    networking: Networking | None = None
    injection_location: LocationPatch = LocationPatch()


AuthUpdate: TypeAlias = Annotated[OAuthUpdate | BearerUpdate | VariableUpdate, ByType()]


class CredentialUpdate(Strict):
    """A name that is null is taken away."""

    auth: AuthUpdate | None = None
    display_name: Name | None = None
    metadata: MetadataPatch | None = None


class Vault(Strict):
    type: Literal["vault"] = "vault"
    id: str
    display_name: str
    metadata: dict[str, str]
    created_at: Moment
    updated_at: Moment
    archived_at: Moment | None


class EndpointAuthShown(Strict):
    type: EndpointAuth


class RefreshShown(Strict):
    client_id: str
    token_endpoint: str
    token_endpoint_auth: EndpointAuthShown
    resource: str | None
    scope: str | None


class OAuthShown(Strict):
    type: Literal["mcp_oauth"] = "mcp_oauth"
    mcp_server_url: str
    expires_at: Moment | None
    refresh: RefreshShown | None


class BearerShown(Strict):
    type: Literal["static_bearer"] = "static_bearer"
    mcp_server_url: str


class LocationShown(Strict):
    header: bool
    body: bool


class VariableShown(Strict):
    type: Literal["environment_variable"] = "environment_variable"
    secret_name: str
    networking: Networking
    injection_location: LocationShown


AuthShown: TypeAlias = Annotated[OAuthShown | BearerShown | VariableShown, ByType()]


class Credential(Strict):
    type: Literal["vault_credential"] = "vault_credential"
    id: str
    vault_id: str
    auth: AuthShown
    display_name: str | None
    metadata: dict[str, str]
    created_at: Moment
    updated_at: Moment
    archived_at: Moment | None


class VaultPage(Strict):
    data: tuple[Vault, ...]
    next_page: str | None


class CredentialPage(Strict):
    data: tuple[Credential, ...]
    next_page: str | None


class DeletedVault(Strict):
    id: str
    type: Literal["vault_deleted"] = "vault_deleted"


class DeletedCredential(Strict):
    id: str
    type: Literal["vault_credential_deleted"] = "vault_credential_deleted"


class HttpResponseShown(Strict):
    """What a server answered, without what is secret in it."""

    status_code: int
    content_type: str
    body: str
    body_truncated: bool


class ProbeShown(Strict):
    method: str
    http_response: HttpResponseShown | None


RefreshStatus: TypeAlias = Literal["succeeded", "failed", "connect_error", "no_refresh_token"]


class RefreshAttemptShown(Strict):
    status: RefreshStatus
    http_response: HttpResponseShown | None


class Validation(Strict):
    type: Literal["vault_credential_validation"] = "vault_credential_validation"
    credential_id: str
    vault_id: str
    validated_at: Moment
    has_refresh_token: bool
    status: Literal["valid", "invalid", "unknown"]
    mcp_probe: ProbeShown | None
    refresh: RefreshAttemptShown | None


def match_key(auth: AuthShown) -> str:
    """What no two living credentials of a vault share."""
    if isinstance(auth, VariableShown):
        return f"env {auth.secret_name}"
    return f"mcp {server_key(auth.mcp_server_url)}"
