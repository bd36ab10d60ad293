"""Credentials of a session that its environment shuts off: what `credential_host_unreachable_error` tells."""

from collections.abc import Iterator, Mapping
from typing import Any

from galley_server.broker.client import ProxyClient
from galley_server.errors import NotFound
from galley_server.hands.access import Access, host_permitted
from galley_server.hands.port import CredentialFault
from galley_server.wire.environment import Limited


async def unreachable_credentials(client: ProxyClient, access: Access) -> list[CredentialFault]:
    """Raises RequestError. What the proxy shows of a credential holds no secret."""
    if not isinstance(access.networking, Limited):
        return []
    found: list[CredentialFault] = []
    for vault_id in access.vault_ids:
        try:
            page = await client.ask("GET", f"/v1/vaults/{vault_id}/credentials?limit=100")
        except NotFound:
            continue  # deleted since the session was made
        for credential in page["data"]:
            shut = [host for host in _hosts(credential) if not host_permitted(access.networking, host)]
            if shut:
                found.append(
                    CredentialFault(
                        vault_id,
                        str(credential["id"]),
                        f"The credential is for {', '.join(shut)}, which the environment's networking does not allow.",
                    )
                )
    return found


def _hosts(credential: Mapping[str, Any]) -> Iterator[str]:
    """The hosts that an environment variable's credential is limited to."""
    match credential:
        case {
            "auth": {"type": "environment_variable", "networking": {"type": "limited", "allowed_hosts": list(hosts)}}
        }:
            yield from (str(host) for host in hosts)
        case _:
            return
