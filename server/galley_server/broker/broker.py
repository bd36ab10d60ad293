"""The vault proxy and everything of this server that talks to it, put together."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from galley_server.broker.child import Child
from galley_server.broker.client import Neighbour, ProxyClient
from galley_server.broker.grants import AccessSource, Grants
from galley_server.broker.outlets import ProxyOutlets
from galley_server.broker.place import API_SOCKET, EGRESS_SOCKET, Sockets
from galley_server.broker.servers import DoorServers
from galley_server.errors import ConfigError, InvalidRequest, NotFound
from galley_server.home import require_private, socket_to_bind
from galley_server.kept import service_key_of
from galley_server.runtime.ports import VaultPage, VaultSummary
from galley_server.secret import Secret
from galley_server.settings import BrokerSettings

_VAULT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ProxyVaults:
    """Implements Vaults."""

    networked: Final = True

    def __init__(self, client: ProxyClient, grants: Grants) -> None:
        self._client = client
        self._grants = grants

    async def check(self, vault_ids: Sequence[str]) -> None:
        for index, vault_id in enumerate(vault_ids):
            missing = NotFound(f"vault_ids.{index}: Vault {vault_id[:80]} was not found.")
            if not _VAULT_ID.fullmatch(vault_id):
                raise missing
            try:
                vault = await self._client.ask("GET", f"/v1/vaults/{vault_id}")
            except NotFound:
                raise missing from None
            if vault.get("archived_at") is not None:
                raise InvalidRequest(f"vault_ids.{index}: {vault_id} is archived; no new session can use it")

    async def list(self, *, limit: int, page: str | None) -> VaultPage:
        query = urlencode({"limit": limit, **({} if page is None else {"page": page})})
        found = await self._client.ask("GET", f"/v1/vaults?{query}")
        return VaultPage(tuple([await self._summary(vault) for vault in found["data"]]), found["next_page"])

    async def _summary(self, vault: Mapping[str, Any]) -> VaultSummary:
        # A vault holds at most twenty.
        held = (await self._client.ask("GET", f"/v1/vaults/{vault['id']}/credentials?limit=100"))["data"]
        auths = [one["auth"] for one in held]
        opens = tuple(str(auth.get("mcp_server_url") or auth.get("secret_name")) for auth in auths)
        return VaultSummary(vault["id"], vault["display_name"], opens)

    async def changed(self, session_id: str) -> None:
        await self._grants.changed(session_id)


@dataclass(frozen=True, slots=True)
class Broker:
    """`child` None: the vault proxy runs by itself."""

    client: ProxyClient
    servers: DoorServers
    outlets: ProxyOutlets
    vaults: ProxyVaults
    child: Child | None

    def begin(self, url: str) -> None:
        """This server accepts requests at `url`: now its vault proxy can be told where browsers find it."""
        if self.child is not None:
            self.child.begin(url)


@asynccontextmanager
async def open_broker(settings: BrokerSettings, home: Path, source: AccessSource) -> AsyncIterator[Broker]:
    """Raises ConfigError. A vault proxy that is started here is started by `begin`."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        child: Child | None = None
        if settings.sockets is None:
            sockets = Sockets(socket_to_bind(home, API_SOCKET), socket_to_bind(home, EGRESS_SOCKET))
            key = _own_key(settings)
            child = await enter(Child.open(sockets, settings.environ))
        else:
            sockets = Sockets.within(settings.sockets)
            key = _neighbours_key(settings)
        client = await enter(ProxyClient.open(sockets, key, child or Neighbour()))
        grants = await enter(Grants.open(client, source))
        outlets = await enter(ProxyOutlets.running(client, grants))
        yield Broker(client, DoorServers(client, grants), outlets, ProxyVaults(client, grants), child)


def _own_key(settings: BrokerSettings) -> Secret:
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(settings.home)
    except OSError as error:
        raise ConfigError(f"GALLEY_PROXY_HOME {settings.home} cannot be used: {error.strerror}") from None
    return service_key_of(settings.home / "service_key", settings.key)


def _neighbours_key(settings: BrokerSettings) -> Secret:
    path = settings.home / "service_key"
    if settings.key is None and not path.exists():
        raise ConfigError("GALLEY_PROXY_KEY must be set to the key of the vault proxy that GALLEY_BROKER names")
    return service_key_of(path, settings.key)
