"""What a create or an update makes of a credential. Pure: the rules of the official API, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from galley_vault_proxy.credentials import material
from galley_vault_proxy.credentials.bodies import shown
from galley_vault_proxy.credentials.shapes import (
    MAX_PAIRS,
    AuthCreate,
    AuthShown,
    AuthUpdate,
    BearerCreate,
    BearerShown,
    BearerUpdate,
    Credential,
    CredentialCreate,
    CredentialUpdate,
    EndpointAuthShown,
    LocationShown,
    OAuthCreate,
    OAuthShown,
    OAuthUpdate,
    RefreshShown,
    VariableCreate,
    VariableShown,
    VariableUpdate,
    Vault,
    VaultUpdate,
)
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.secret import Secret


@dataclass(frozen=True, slots=True)
class AuthChange:
    """What becomes of a credential's settings, and of the fields of its secret (None: taken away)."""

    auth: AuthShown
    secrets: Mapping[str, Secret | None]


def new_credential(credential_id: str, vault_id: str, asked: CredentialCreate, now: datetime) -> Credential:
    """Raises InvalidRequest."""
    if isinstance(asked.auth, OAuthCreate):
        _in_future(asked.auth.expires_at, now)
    return Credential(
        id=credential_id,
        vault_id=vault_id,
        auth=shown_auth(asked.auth),
        display_name=asked.display_name or None,
        metadata=asked.metadata,
        created_at=now,
        updated_at=now,
        archived_at=None,
    )


def shown_auth(auth: AuthCreate) -> AuthShown:
    match auth:
        case OAuthCreate(refresh=None):
            return OAuthShown(mcp_server_url=auth.mcp_server_url, expires_at=auth.expires_at, refresh=None)
        case OAuthCreate(refresh=refresh):
            assert refresh is not None
            return OAuthShown(
                mcp_server_url=auth.mcp_server_url,
                expires_at=auth.expires_at,
                refresh=RefreshShown(
                    client_id=refresh.client_id,
                    token_endpoint=refresh.token_endpoint,
                    token_endpoint_auth=EndpointAuthShown(type=refresh.token_endpoint_auth.type),
                    resource=refresh.resource or None,
                    scope=refresh.scope or None,
                ),
            )
        case BearerCreate():
            return BearerShown(mcp_server_url=auth.mcp_server_url)
        case VariableCreate():
            return VariableShown(
                secret_name=auth.secret_name,
                networking=auth.networking,
                injection_location=LocationShown(
                    header=auth.injection_location.header, body=auth.injection_location.body
                ),
            )


def updated(stored: Credential, asked: CredentialUpdate, auth: AuthShown, now: datetime) -> Credential:
    """`auth`: what `changed_auth` made of it. Raises InvalidRequest."""
    given = asked.model_fields_set
    return stored.model_copy(
        update={
            "auth": auth,
            "display_name": asked.display_name if "display_name" in given else stored.display_name,
            "metadata": patched(stored.metadata, asked.metadata),
            "updated_at": now,
        }
    )


def changed_auth(stored: AuthShown, asked: AuthUpdate | None, now: datetime) -> AuthChange:
    """Raises InvalidRequest, which names the field."""
    match (stored, asked):
        case (_, None):
            return AuthChange(stored, {})
        case (OAuthShown(), OAuthUpdate()):
            return _oauth(stored, asked, now)
        case (BearerShown(), BearerUpdate()):
            return AuthChange(stored, material.present({material.TOKEN: asked.token}))
        case (VariableShown(), VariableUpdate()):
            return _variable(stored, asked)
        case _:
            raise InvalidRequest(
                f"auth.type: This credential is of type '{stored.type}', which cannot be changed "
                f"(got {shown(asked.type)})"
            )


def updated_vault(stored: Vault, asked: VaultUpdate, now: datetime) -> Vault:
    return stored.model_copy(
        update={
            "display_name": asked.display_name or stored.display_name,
            "metadata": patched(stored.metadata, asked.metadata),
            "updated_at": now,
        }
    )


def patched(bag: Mapping[str, str], patch: Mapping[str, str | None] | None) -> dict[str, str]:
    """Merge key by key: a string sets, null deletes. Raises InvalidRequest."""
    merged = dict(bag)
    for key, value in (patch or {}).items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    if len(merged) > MAX_PAIRS:
        raise InvalidRequest(
            f"metadata: Metadata should have at most {MAX_PAIRS} pairs (got {len(merged)} after the update)",
            error_code="invalid_metadata",
        )
    return merged


def _oauth(stored: OAuthShown, asked: OAuthUpdate, now: datetime) -> AuthChange:
    secrets: dict[str, Secret | None] = dict(material.present({material.ACCESS: asked.access_token}))
    changes: dict[str, object] = {}
    if "expires_at" in asked.model_fields_set:
        _in_future(asked.expires_at, now)
        changes["expires_at"] = asked.expires_at
        secrets.update(material.expiry(asked.expires_at, now))
    if asked.refresh is not None:
        if stored.refresh is None:
            raise InvalidRequest(
                "auth.refresh: This credential has no refresh configuration, and none can be added: "
                "archive it and make another"
            )
        patch = asked.refresh
        secrets.update(material.present({material.REFRESH: patch.refresh_token}))
        if patch.token_endpoint_auth is not None:
            if stored.refresh.token_endpoint_auth.type == "none":
                raise InvalidRequest(
                    "auth.refresh.token_endpoint_auth: This credential's token endpoint takes no client secret "
                    "(its type is 'none', which cannot be changed)"
                )
            secrets.update(material.present({material.CLIENT: patch.token_endpoint_auth.client_secret}))
        if patch.scope is not None:
            changes["refresh"] = stored.refresh.model_copy(update={"scope": patch.scope or None})
    return AuthChange(stored.model_copy(update=changes), secrets)


def _variable(stored: VariableShown, asked: VariableUpdate) -> AuthChange:
    place = asked.injection_location
    merged = stored.injection_location.model_copy(
        update={name: getattr(place, name) for name in place.model_fields_set}
    )
    if not (merged.header or merged.body):
        raise InvalidRequest(
            "auth.injection_location: At least one of header and body must be true after the update "
            f"(got header {shown(merged.header)}, body {shown(merged.body)})"
        )
    auth = stored.model_copy(update={"networking": asked.networking or stored.networking, "injection_location": merged})
    return AuthChange(auth, material.present({material.VALUE: asked.secret_value}))


def _in_future(at: datetime | None, now: datetime) -> None:
    if at is not None and at <= now:
        raise InvalidRequest(f"auth.expires_at: Give a time in the future (got '{at.isoformat()}')")
