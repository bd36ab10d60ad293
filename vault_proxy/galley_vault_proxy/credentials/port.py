"""What the doors ask of credentials: something to inject, and what must not come back. No I/O here."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from galley_vault_proxy.secret import Secret

Location: TypeAlias = Literal["header", "body"]


@dataclass(frozen=True, slots=True)
class Injection:
    """What to add to a request to an MCP server. `secrets`: every value to redact from what comes back."""

    header: str
    value: Secret
    credential_id: str
    version: int
    secrets: tuple[Secret, ...]


@dataclass(frozen=True, slots=True)
class EnvCredential:
    """An `environment_variable` credential: the sandbox holds `placeholder`, the egress door swaps it.

    `hosts` None: every host that the grant allows; else patterns in their normal spelling.
    """

    credential_id: str
    version: int
    name: str
    placeholder: str
    secret: Secret
    hosts: tuple[str, ...] | None
    locations: frozenset[Location]


class CredentialSource(Protocol):
    """Finds credentials for a session. Errors are those of the secret store: no answer is never an empty answer."""

    async def for_mcp(
        self, session_id: str, vault_ids: Sequence[str], url: str, *, fresh: bool = False
    ) -> Injection | None:
        """The credential whose URL has this one's normal form; of two vaults the first wins. None: there is none.

        `fresh` asks the store itself: for the second try after the upstream has refused the first.
        """
        ...

    async def for_host(self, session_id: str, vault_ids: Sequence[str]) -> Sequence[EnvCredential]:
        """Every `environment_variable` credential of these vaults; of two with one name, the first vault's."""
        ...

    async def placeholders(self, session_id: str, vault_ids: Collection[str]) -> dict[str, str]:
        """Names and placeholders, to put into a sandbox's environment. Reads no secret."""
        ...

    async def refresh(self, credential_id: str, seen_version: int) -> bool:
        """An upstream refused this version: get a newer one. False when there is nothing to get one with."""
        ...
