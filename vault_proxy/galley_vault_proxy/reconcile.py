"""`galley-vault-proxy reconcile`: compares what Vault holds for the proxy with what the proxy's state knows.

For after a state was lost, or restored from a backup. It needs an operator's token, because only an administrator may
list accessors. By default it only tells.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultSettings, home_of
from galley_vault_proxy.state import State
from galley_vault_proxy.store import leases
from galley_vault_proxy.store.leases import Entity, Leases
from galley_vault_proxy.store.names import id_of, vault_name
from galley_vault_proxy.store.operator import Operator, operators_settings, print_line
from galley_vault_proxy.store.proxy_identity import fault_to_error
from galley_vault_proxy.store.vault_adapter import Json
from galley_vault_proxy.store.vault_fault import Invalid, VaultFault

# A token is made before the state knows it.
_YOUNG_S: Final = 60
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, repr=False)
class Stray:
    """A session token at Vault that the state does not know."""

    accessor: str
    session_id: str
    vault_id: str


@dataclass(frozen=True, slots=True)
class Differences:
    """`gone`: entities that the state knows and Vault does not, so that their vaults cannot be read any more.

    `retired`: entities of vaults that were deleted. `looked_at`: how many session tokens of ours Vault holds.
    """

    looked_at: int
    strays: tuple[Stray, ...]
    gone: tuple[Entity, ...]
    retired: tuple[Entity, ...]


async def compare(vault: Operator, settings: VaultSettings, known: Leases, *, now: float) -> Differences:
    """Raises VaultFault, ConfigError, StoreUnavailable."""
    accessors = await _accessors(vault)
    # Read after Vault's: what was made in between is known.
    ours = await known.accessors()
    strays: list[Stray] = []
    looked_at = 0
    limit = asyncio.Semaphore(_AT_ONCE)

    async def look(accessor: str) -> None:
        nonlocal looked_at
        async with limit:
            found = await _looked_up(vault, accessor)
        if found is None or found.get("role") != settings.mounts.token_role:
            return
        looked_at += 1
        made_at = found.get("creation_time")
        young = isinstance(made_at, int) and now - made_at < _YOUNG_S
        if accessor not in ours and not young:
            strays.append(_stray(accessor, found))

    async with asyncio.TaskGroup() as tasks:
        for accessor in accessors:
            tasks.create_task(look(accessor), name="look-up")
    entities = await known.entities()
    gone = [each for each in entities if not each.retired and not await _stands(vault, each)]
    return Differences(looked_at, tuple(strays), tuple(gone), tuple(each for each in entities if each.retired))


async def reconcile(
    settings: VaultSettings, operator: Secret, home: Path, *, repair: bool, say: Callable[[str], None], now: float
) -> int:
    """Tell the differences, or set them right; return how many there are."""
    if not (home / "state.db").exists():
        raise ConfigError(f"{home} holds no state of the proxy: set GALLEY_PROXY_HOME")
    try:
        async with (
            State.open(home / "state.db", [leases.SCHEMA]) as state,
            Operator.open(settings, operator) as vault,
        ):
            known = Leases(state)
            found = await compare(vault, settings, known, now=now)
            for line in described(found):
                say(line)
            if repair:
                await _repair(vault, known, found)
    except VaultFault as fault:
        raise fault_to_error(fault) from None
    return len(found.strays) + len(found.gone) + len(found.retired)


def described(found: Differences) -> list[str]:
    """One line each. Never an accessor."""
    return [
        f"{found.looked_at} session tokens at Vault",
        *(f"  unknown here: a token of session {stray.session_id} for {stray.vault_id}" for stray in found.strays),
        *(f"  gone from Vault: the identity of {entity.vault_id}, so no secret of it is read" for entity in found.gone),
        *(f"  left at Vault: the identity of {entity.vault_id}, which was deleted" for entity in found.retired),
    ]


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(
        prog="galley-vault-proxy reconcile",
        description="Compare what Vault holds for the proxy with what the proxy's state knows. Needs VAULT_ADDR, an "
        "operator's VAULT_TOKEN and the proxy's GALLEY_PROXY_HOME.",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="revoke unknown tokens, delete identities of deleted vaults, and forget identities that are gone. Tokens "
        "of another proxy with a home of its own are unknown here too: do not repair where two share a token role",
    )
    arguments = parser.parse_args(argv)
    settings, operator = operators_settings(environ)
    count = asyncio.run(
        reconcile(settings, operator, home_of(environ), repair=arguments.repair, say=print_line, now=time.time())
    )
    if not count:
        print_line("Vault and the state agree")
        return 0
    print_line(f"{count} {'set right' if arguments.repair else 'differences; --repair sets them right'}")
    return 0 if arguments.repair else 1


async def _repair(vault: Operator, known: Leases, found: Differences) -> None:
    for stray in found.strays:
        await vault.write("auth/token/revoke-accessor", {"accessor": stray.accessor})
    for entity in found.retired:
        await vault.delete(f"identity/entity/id/{entity.entity_id}")
        await known.forget_entity(entity.vault_id)
    for entity in found.gone:
        await known.forget_entity(entity.vault_id)


async def _accessors(vault: Operator) -> list[str]:
    answer = await vault.read("auth/token/accessors", method="list")
    keys = None if answer is None else answer.part("data").get("keys")
    return [str(key) for key in keys] if isinstance(keys, list) else []


async def _looked_up(vault: Operator, accessor: str) -> Json | None:
    try:
        answer = await vault.write("auth/token/lookup-accessor", {"accessor": accessor})
    except Invalid:
        return None  # it has ended since it was listed
    return answer.part("data")


async def _stands(vault: Operator, entity: Entity) -> bool:
    """Whether Vault still has the vault's identity, under its name."""
    answer = await vault.read(f"identity/entity/id/{entity.entity_id}")
    aliases = None if answer is None else answer.part("data").get("aliases")
    names = [each.get("name") for each in aliases if isinstance(each, dict)] if isinstance(aliases, list) else []
    return vault_name(entity.vault_id) in names


def _stray(accessor: str, data: Json) -> Stray:
    meta = data.get("meta")
    session, vault = (meta.get("session"), meta.get("vault")) if isinstance(meta, dict) else (None, None)
    return Stray(accessor, str(session), id_of(str(vault)) or str(vault))
