"""The port between a credential that has to be renewed and whatever renews it."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from galley_vault_proxy.credentials.rows import Stored
from galley_vault_proxy.credentials.shapes import RefreshAttemptShown

Reason: TypeAlias = Literal["due", "refused", "asked"]
"""Why a new token is wanted: the old one ends soon, an upstream refused it, or somebody wants to see it tried."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """What became of fetching a new access token. `version`: the newest that there is now; None: there is no secret.

    `attempt` is None when none was made: somebody else had just been faster, or there is nothing to make one with.
    """

    version: int | None
    attempt: RefreshAttemptShown | None


class Renewal(Protocol):
    """Fetches new access tokens: one request for all who ask at a time, in whichever process they do."""

    async def renew(self, stored: Stored, seen_version: int, *, why: Reason) -> Renewed:
        """Fetch a token newer than `seen_version`, unless there is one.

        After a failure it is not tried again for a while, unless it is `asked` for. A failure changes nothing that is
        stored. Raises the errors of the secret store and Unavailable, and no others.
        """
        ...
