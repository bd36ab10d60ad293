"""Credentials on their way: what to inject for a server, what to take out of its answers, and getting a newer one."""

from collections import OrderedDict
from typing import Final

from galley_vault_proxy.credentials.port import CredentialSource, Injection
from galley_vault_proxy.errors import ProxyError
from galley_vault_proxy.grant.token import Grant
from galley_vault_proxy.redact import Patterns
from galley_vault_proxy.secret import Secret

_KEPT: Final = 1024
_VERSIONS: Final = 3
_NOTHING: Final = Patterns(())


class Keys:
    def __init__(self, source: CredentialSource) -> None:
        self._source = source
        # The last versions of each credential: a server may still echo the one before.
        self._recent: OrderedDict[str, dict[int, tuple[Secret, ...]]] = OrderedDict()
        self._patterns: OrderedDict[str, tuple[tuple[int, ...], Patterns]] = OrderedDict()

    async def get(self, grant: Grant, url: str) -> Injection | None:
        """What to inject; None when no credential of the session's vaults is for this server. Raises RequestError."""
        return await self._source.for_mcp(grant.session_id, grant.vault_ids, url)

    async def renew(self, grant: Grant, url: str, refused: Injection) -> Injection | None:
        """Another one than the server has refused; None when there is none. A failure to get one is none."""
        try:
            await self._source.refresh(refused.credential_id, refused.version)
            # Asked even when nothing was refreshed: somebody may have rotated it in the store.
            found = await self._source.for_mcp(grant.session_id, grant.vault_ids, url, fresh=True)
        except ProxyError:
            return None
        if found is None or (found.credential_id, found.version) == (refused.credential_id, refused.version):
            return None
        return found

    def patterns(self, injection: Injection | None) -> Patterns:
        """What to take out of the answers of a server that was sent this."""
        if injection is None:
            return _NOTHING
        versions = self._recent.setdefault(injection.credential_id, {})
        self._recent.move_to_end(injection.credential_id)
        if injection.version not in versions:
            versions[injection.version] = (*injection.secrets, injection.value)
            for old in sorted(versions)[:-_VERSIONS]:
                del versions[old]
            while len(self._recent) > _KEPT:
                self._patterns.pop(self._recent.popitem(last=False)[0], None)
        known = tuple(versions)
        found = self._patterns.get(injection.credential_id)
        if found is None or found[0] != known:
            patterns = Patterns(secret for secrets in versions.values() for secret in secrets)
            found = self._patterns[injection.credential_id] = (known, patterns)
        return found[1]
