"""What can go wrong between us and Vault, and which status of Vault's means which. No I/O here.

VaultFault
├── Invalid    400: Vault understood, and does not want it; `says` compares its texts, which are never shown
├── Refused    401, 403: the token is dead, or its policy says no. Vault does not say which
├── Missing    404: there is nothing, or it was deleted
└── Down       everything else, and no answer at all. `done`: whether Vault may have done it all the same

These do not leave the store: `vault_store` makes errors of the port of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class VaultFault(Exception):
    """Root. The message is safe to show: it holds nothing of Vault's answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(VaultFault):
    def __init__(self, message: str, errors: tuple[str, ...]) -> None:
        super().__init__(message)
        self._errors = errors

    def says(self, text: str) -> bool:
        return any(text in error for error in self._errors)


class Refused(VaultFault):
    """Not said: whether the token or the policy."""


class Missing(VaultFault):
    """There is nothing here."""


class Down(VaultFault):
    """Vault did not do it, or may have done it and could not say so (`done`).

    `passing`: it is worth asking again. `ill`: Vault itself is not well, which counts for the circuit breaker.
    """

    def __init__(self, message: str, *, done: bool, passing: bool = True, ill: bool = True) -> None:
        super().__init__(message)
        self.done = done
        self.passing = passing
        self.ill = ill


@dataclass(frozen=True, slots=True)
class _Trouble:
    message: str
    done: bool
    passing: bool = True
    ill: bool = True


_TROUBLE: Final[Mapping[int, _Trouble]] = {
    412: _Trouble("Vault's node is behind the one that was written to", done=False, ill=False),
    429: _Trouble("Vault's rate limit is reached: raise its quota for the proxy", done=False, ill=False),
    472: _Trouble("this is a disaster-recovery standby: point VAULT_ADDR at the primary", done=False),
    473: _Trouble("this is a performance standby: point VAULT_ADDR at the active node", done=False),
    # A full audit disk is one cause of a 500, and sys/health says 200 all the while.
    500: _Trouble("Vault answers with an internal error (is the disk of its audit log full?)", done=True),
    501: _Trouble("Vault is not initialised", done=False),
    502: _Trouble("the way to Vault is broken (bad gateway)", done=True),
    503: _Trouble("Vault is sealed, or under maintenance", done=False),
    504: _Trouble("Vault did not answer its gateway in time", done=True),
}
_STANDBY: Final = "local node not active"
# A KV engine of version 2 says so, with 400, for a moment after it was mounted.
_UPGRADING: Final = "unavailable for a brief period"


def fault_of(status: int, errors: tuple[str, ...], what: str) -> VaultFault:
    """The fault that a status other than 200 and 204 stands for."""
    if status == 400 and any(_UPGRADING in error for error in errors):
        return Down("Vault's KV engine is only just being set up", done=False, ill=False)
    if status == 400:
        return Invalid(f"Vault does not accept the request to {what}", errors)
    if status in {401, 403}:
        return Refused(f"Vault refuses to {what}")
    if status == 404:
        return Missing(f"Vault has nothing there to {what}")
    if 300 <= status < 400:
        # Following it would hand the token to another host.
        return Down(
            "Vault redirects to another node: let its standbys forward requests, or point VAULT_ADDR at the active one",
            done=False,
        )
    if status == 500 and any(_STANDBY in error for error in errors):
        return Down("Vault has no active node at the moment", done=False)
    trouble = _TROUBLE.get(status)
    if trouble is not None:
        return Down(trouble.message, done=trouble.done, passing=trouble.passing, ill=trouble.ill)
    if status >= 500:
        return Down(f"Vault answers with status {status}", done=True)
    return Down(f"Vault answers with status {status} to the request to {what}", done=False, passing=False, ill=False)
