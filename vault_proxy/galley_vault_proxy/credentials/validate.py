"""`mcp_oauth_validate`: is a credential let in by its server, and if not, can it be renewed?"""

from collections.abc import Collection
from typing import Final, Literal
from urllib.parse import urlsplit

from galley_vault_proxy.audit import AuditLine
from galley_vault_proxy.credentials import material
from galley_vault_proxy.credentials.credentials import Credentials
from galley_vault_proxy.credentials.probe import Probe, Sender, probe
from galley_vault_proxy.credentials.renewal import Renewal
from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.scrub import scrubbed
from galley_vault_proxy.credentials.shapes import (
    HttpResponseShown,
    OAuthShown,
    ProbeShown,
    RefreshAttemptShown,
    Validation,
)
from galley_vault_proxy.credentials.vaults import Ground
from galley_vault_proxy.errors import InvalidRequest, SecretMissing
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.port import Material

# These say "not now" of the server, and nothing of the token.
_PASSING: Final = frozenset({408, 425, 429})


class Validator:
    def __init__(self, ground: Ground, credentials: Credentials, renewal: Renewal, sender: Sender) -> None:
        self._ground = ground
        self._credentials = credentials
        self._renewal = renewal
        self._sender = sender

    async def validate(self, vault_id: str, credential_id: str) -> Validation:
        """Raises NotFound, InvalidRequest (not OAuth, archived), AddressRefused, and what the secret store raises."""
        stored = await self._credentials.usable(vault_id, credential_id)
        auth = stored.shown.auth
        if not isinstance(auth, OAuthShown):
            raise InvalidRequest(
                f"{credential_id} is of type '{auth.type}': only an 'mcp_oauth' credential can be validated"
            )
        current = await self._ground.store.read_own(stored.ref)
        found = await self._probe(stored, auth, current)
        attempt: RefreshAttemptShown | None = None
        if found.status == 401:
            renewed = await self._renewal.renew(stored, current.version, why="asked")
            attempt = renewed.attempt
            if renewed.version is not None and renewed.version > current.version:
                current = await self._ground.store.read_own(stored.ref)
                found = await self._probe(stored, auth, current)
        return Validation(
            credential_id=credential_id,
            vault_id=vault_id,
            validated_at=self._ground.clock(),
            has_refresh_token=auth.refresh is not None and material.REFRESH in current.fields,
            status=verdict(found.method, found.status, attempt),
            mcp_probe=_shown(found, material.all_secrets(current)),
            refresh=attempt,
        )

    async def _probe(self, stored: Stored, auth: OAuthShown, current: Material) -> Probe:
        token = material.token_of(current)
        if token is None:
            raise SecretMissing(f"{stored.shown.id} holds no access token that a header can carry")
        self._ground.audit.record(
            AuditLine(
                "credential.use",
                "allow",
                reason="validated",
                who="service",
                vault_id=stored.shown.vault_id,
                credential_id=stored.shown.id,
                credential_version=current.version,
                host=urlsplit(auth.mcp_server_url).hostname,
            )
        )
        return await probe(self._sender, auth.mcp_server_url, token)


def verdict(
    failed: str | None, status: int | None, attempt: RefreshAttemptShown | None
) -> Literal["valid", "invalid", "unknown"]:
    """`invalid` means: somebody has to authorise anew. What may be different in a minute is `unknown`."""
    if failed is None:
        return "valid"
    if attempt is not None and attempt.status == "connect_error":
        return "unknown"
    if attempt is not None and attempt.status == "failed" and attempt.http_response is not None:
        return "unknown" if _passing(attempt.http_response.status_code) else "invalid"
    if status is None or _passing(status):
        return "unknown"
    return "invalid" if 400 <= status < 500 else "unknown"


def _passing(status: int) -> bool:
    return status in _PASSING or status >= 500


def _shown(found: Probe, secrets: Collection[Secret]) -> ProbeShown | None:
    if found.method is None:
        return None
    answer = found.answer
    response: HttpResponseShown | None = None
    if answer is not None:
        response = scrubbed(answer.status, str(answer.headers.get("content-type", "")), answer.body, secrets)
    return ProbeShown(method=found.method, http_response=response)
