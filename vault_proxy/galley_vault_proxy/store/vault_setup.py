"""What Vault must hold for the proxy: policies, a token role, a transit key, a header in its audit log. No I/O here.

Each line is there because leaving it out was seen to be dangerous, or because a call of ours needs it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store.names import check_path

CEILING_S: Final = 24 * 3600
AUDIT_HEADER: Final = "x-galley-session"
# So that a rotated credential's old values do not stay readable for long.
MAX_VERSIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator may choose beyond the settings."""

    dynamic: tuple[str, ...] = ()
    cidrs: tuple[str, ...] = ()
    approle: str | None = None

    def __post_init__(self) -> None:
        for mount in self.dynamic:
            check_path(mount)


def session_policy(mounts: VaultMounts, token_accessor: str, dynamic: Collection[str]) -> str:
    """What a session's token may do: its own vault's secrets, and nothing else. Vault fills the alias in."""
    alias = "{{identity.entity.aliases." + token_accessor + ".name}}"
    rules = [
        _rule(f"{mounts.kv}/data/{mounts.kv_prefix}/{alias}/*", "read"),
        _rule(f"{mounts.database}/creds/galley-{alias}-*", "read"),
        _rule(f"{mounts.pki}/issue/galley-{alias}-*", "update"),
    ]
    rules += [_rule(f"{mount}/creds/galley-{alias}-*", "read") for mount in sorted(dynamic)]
    return "".join(rules)


def proxy_policy(mounts: VaultMounts) -> str:
    """What the proxy's own token may do. It cannot read a secret, write a policy, or use a sudo path."""
    minting = (
        f'path "auth/token/create/{mounts.token_role}" {{\n'
        '  capabilities = ["update"]\n'
        # Without an alias Vault makes a token that has no identity.
        '  required_parameters = ["entity_alias", "meta", "ttl"]\n'
        # So that policies, id, type and period cannot be asked for.
        '  allowed_parameters = { "entity_alias" = ["vlt-*"], "meta" = [], "ttl" = [] }\n'
        "}\n"
    )
    return minting + "".join(
        _rule(path, *capabilities) for path, capabilities in proxy_paths(mounts).items() if "/create/" not in path
    )


def proxy_paths(mounts: VaultMounts) -> Mapping[str, tuple[str, ...]]:
    """Paths and capabilities of the proxy's own token, as its policy writes them."""
    key = mounts.transit_key
    return {
        f"auth/token/create/{mounts.token_role}": ("update",),
        "auth/token/lookup-accessor": ("update",),
        "auth/token/renew-accessor": ("update",),
        "auth/token/revoke-accessor": ("update",),
        "auth/token/lookup-self": ("read",),
        "auth/token/renew-self": ("update",),
        "sys/leases/revoke": ("update",),
        "sys/capabilities-self": ("update",),
        # No `create`: it would make keys.
        f"{mounts.transit}/encrypt/{key}": ("update",),
        f"{mounts.transit}/decrypt/{key}": ("update",),
        f"{mounts.kv}/data/{mounts.kv_prefix}/*": ("create", "update"),
        f"{mounts.kv}/metadata/{mounts.kv_prefix}/*": ("delete", "list"),
    }


def proxy_needs(mounts: VaultMounts) -> Mapping[str, tuple[str, ...]]:
    """The same on paths that one can ask `sys/capabilities-self` about."""
    return {path.replace("/*", "/vlt-doctor/crd-doctor"): needs for path, needs in proxy_paths(mounts).items()}


def token_role(mounts: VaultMounts, cidrs: Collection[str]) -> dict[str, JsonValue]:
    """The role that session tokens are made with."""
    return {
        # Without it a session's token would get the proxy's own policies.
        "allowed_policies": [mounts.policy],
        "allowed_entity_aliases": ["vlt-*"],
        "orphan": True,
        "token_type": "service",
        "renewable": True,
        "token_no_default_policy": True,
        # The call's own maximum is lost at the first renewal, the role's is not. A period would void the call's ttl.
        "token_explicit_max_ttl": CEILING_S,
        "token_period": 0,
        "token_bound_cidrs": [*sorted(cidrs)],
    }


def login_role(mounts: VaultMounts, cidrs: Collection[str]) -> dict[str, JsonValue]:
    """The AppRole that the proxy logs in with: renewed without end while the proxy lives, dead an hour after."""
    return {
        "token_policies": [mounts.proxy_policy],
        "token_no_default_policy": True,
        "token_type": "service",
        "token_period": 3600,
        "token_bound_cidrs": [*sorted(cidrs)],
        "bind_secret_id": True,
    }


def _rule(path: str, *capabilities: str) -> str:
    listed = ", ".join(f'"{capability}"' for capability in capabilities)
    return f'path "{path}" {{\n  capabilities = [{listed}]\n}}\n'
