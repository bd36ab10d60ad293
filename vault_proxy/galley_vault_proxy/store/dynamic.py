"""What is asked of Vault's dynamic engines, and what a lease is. No I/O here."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, assert_never

from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store.names import check_path, role_name
from galley_vault_proxy.store.port import Engine, Lease
from galley_vault_proxy.store.vault_adapter import Answer, Request, whole_of
from galley_vault_proxy.store.vault_fault import Down

# What a certificate may be asked for; everything else is the role's to say.
_PKI_PARAMS: Final = frozenset({"common_name", "alt_names", "ip_sans", "uri_sans", "ttl", "format"})


def issue(
    mounts: VaultMounts, session_id: str, vault: str, engine: Engine, role: str, params: Mapping[str, str]
) -> Request:
    """Raises InvalidRequest."""
    what = f"issue {engine} credentials"
    match engine:
        case "database":
            _none(params, engine)
            path = f"{mounts.database}/creds/{role_name(vault, role)}"
            return Request("get", path, what, session=session_id, patient=True)
        case "generic":
            _none(params, engine)
            mount, slash, name = role.rpartition("/")
            if not slash:
                raise InvalidRequest(f"role {role[:80]!r}: name the engine's mount first, e.g. rabbitmq/reader")
            path = f"{check_path(mount)}/creds/{role_name(vault, name)}"
            return Request("get", path, what, session=session_id, patient=True)
        case "pki":
            odd = params.keys() - _PKI_PARAMS
            if odd:
                raise InvalidRequest(f"params: {', '.join(sorted(odd))[:200]} cannot be asked for a certificate")
            path = f"{mounts.pki}/issue/{role_name(vault, role)}"
            return Request("post", path, what, dict(params), session=session_id, patient=True)
        case _:
            assert_never(engine)


def lease(engine: Engine, answer: Answer, now: datetime) -> Lease:
    """Raises Down when nothing could revoke what was issued."""
    data = answer.part("data")
    lease_id = answer.body.get("lease_id")
    if not isinstance(lease_id, str) or not lease_id:
        fix = "set generate_lease=true on the role" if engine == "pki" else "use an engine that leases"
        raise Down(
            f"Vault issued {engine} credentials without a lease, which no session's end would revoke, so they are "
            f"not given out: {fix}",
            done=True,
            passing=False,
            ill=False,
        )
    fields = {name: Secret(value) for name, value in data.items() if isinstance(value, str)}
    return Lease(lease_id, fields, now + timedelta(seconds=whole_of(answer.body, "lease_duration")))


def revoke(lease_id: str) -> Request:
    return Request("put", "sys/leases/revoke", "revoke a lease", {"lease_id": lease_id, "sync": True}, again=True)


def _none(params: Mapping[str, str], engine: Engine) -> None:
    if params:
        raise InvalidRequest(f"params: {engine} credentials take none")
