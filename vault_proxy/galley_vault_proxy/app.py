"""Everything put together, by hand and in one place: the one list of what is opened and, in reverse, closed."""

import asyncio
import hmac
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from galley_vault_proxy.admin.app import Face, build_http
from galley_vault_proxy.admin.audit import AuditFace
from galley_vault_proxy.admin.grants import GrantFace
from galley_vault_proxy.admin.health import HealthFace
from galley_vault_proxy.admin.sandbox import SandboxFace
from galley_vault_proxy.audit import Audit
from galley_vault_proxy.config import read_config, read_protocols
from galley_vault_proxy.egress.door import EgressDoor
from galley_vault_proxy.egress.door import Parts as EgressParts
from galley_vault_proxy.errors import Unavailable
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.serving import Address, bind, loop_factory, serve_on, unix_socket
from galley_vault_proxy.kept import grant_key_of, private_directory, service_key_of
from galley_vault_proxy.mcp_door import pin_state
from galley_vault_proxy.mcp_door.door import McpDoor
from galley_vault_proxy.mcp_door.gate import known_hosts
from galley_vault_proxy.mcp_door.pin_face import PinFace
from galley_vault_proxy.mcp_door.pin_state import StatePins
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.oauth.assembly import SCHEMAS as CREDENTIAL_SCHEMAS
from galley_vault_proxy.oauth.assembly import open_credentials
from galley_vault_proxy.settings import Settings
from galley_vault_proxy.state import State
from galley_vault_proxy.store import leases
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.port import SecretStore
from galley_vault_proxy.store.vault_store import VaultStore

_SCHEMAS: Final = (rows.SCHEMA, leases.SCHEMA, pin_state.SCHEMA, *CREDENTIAL_SCHEMAS)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP address for each door. Port 0 takes any free one."""

    host: str
    port: int
    egress_port: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: at a TCP address, on Unix sockets, or both."""

    tcp: Tcp | None
    uds: Path | None = None
    egress_uds: Path | None = None


def serve(settings: Settings, listen: Listen, *, lifeline: bool = False) -> int:
    """Run until SIGTERM or SIGINT, and with a `lifeline` until standard input ends. Raises ConfigError."""
    _log_to_stderr(settings)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, listen, lifeline))
    return 0


async def _serve(settings: Settings, listen: Listen, lifeline: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if lifeline:
        _end_with_stdin(loop, stop)
    async with running(settings, listen) as address:
        sys.stdout.write(f"galley-vault-proxy ready {f'unix:{listen.uds}' if address is None else address.url}\n")
        sys.stdout.flush()
        await stop.wait()


def _end_with_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Whoever starts this holds the other end, and lets go of it however it dies."""
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop.set()

    loop.add_reader(descriptor, read)


@asynccontextmanager
async def running(settings: Settings, listen: Listen) -> AsyncIterator[Address | None]:
    """The proxy, accepting requests inside the block; yields its TCP address if it has one. Raises ConfigError."""
    private_directory(settings.home)
    key = service_key_of(settings.home, settings.key)
    grant_key = grant_key_of(settings.home)
    stdio = read_config(settings.config)
    guard = Netguard(settings.allow_nets)
    closing, own = asyncio.Event(), OwnUrl(settings.url)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        state = await enter(State.open(settings.home / "state.db", _SCHEMAS))
        audit = await enter(Audit.open(settings.home / "audit", max_bytes=settings.audit_bytes))
        store = await enter(_store(settings, state))
        registry = await enter(Registry.open(state, key=grant_key, gate=store))
        part = await enter(
            open_credentials(state, store, audit, guard, key=_derived(grant_key, b"repeatable calls"), base_url=own)
        )
        egress = await enter(
            EgressDoor.open(
                EgressParts(registry, audit, guard, part.source, key, settings.home),
                host=None if listen.tcp is None else listen.tcp.host,
                port=0 if listen.tcp is None else listen.tcp.egress_port,
                uds=listen.egress_uds,
            )
        )
        pins = StatePins(state)
        faces: list[Face] = [
            GrantFace(registry, audit, stdio=frozenset(stdio)),
            AuditFace(audit),
            HealthFace([("state", registry.ready), ("audit", audit.ready), ("store", store.ready)]),
            SandboxFace(
                registry,
                part.source,
                egress_url=_egress_url(settings, egress.address),
                ca_pem=egress.ca_pem,
            ),
            PinFace(pins, audit),
            part.vault_face,
            part.login_face,
        ]
        mcp_door = await enter(
            McpDoor.open(
                registry=registry,
                credentials=part.source,
                audit=audit,
                netguard=guard,
                pins=pins,
                key=_derived(grant_key, b"mcp sessions"),
                closing=closing,
                hosts=known_hosts("localhost" if listen.tcp is None else listen.tcp.host, settings.url),
                stdio=stdio,
                protocols=read_protocols(settings.config),
            )
        )
        app = build_http(faces, key=key, audit=audit, doors=[*mcp_door.routes(), *part.login_face.doors()])
        sockets, address = await _listening(stack, listen)
        await enter(serve_on(sockets, app, key=key, closing=closing))
        own.listening(address)
        yield address


async def _listening(stack: AsyncExitStack, listen: Listen) -> tuple[list[socket.socket], Address | None]:
    """The sockets of the API and the MCP door, and the TCP address if there is one. Raises ConfigError."""
    sockets: list[socket.socket] = []
    address: Address | None = None
    if listen.tcp is not None:
        tcp = stack.enter_context(await bind(listen.tcp.host, listen.tcp.port))
        sockets.append(tcp)
        address = Address(listen.tcp.host, tcp.getsockname()[1])
    if listen.uds is not None:
        sockets.append(stack.enter_context(unix_socket(listen.uds)))
    return sockets, address


class OwnUrl:
    """Under which URL people reach this proxy: what the operator says, else where it listens."""

    def __init__(self, chosen: str | None) -> None:
        self._url = chosen

    def __call__(self) -> str:
        if self._url is None:
            raise Unavailable("no URL leads to this proxy: it is still starting, or GALLEY_PROXY_URL must be set")
        return self._url

    def listening(self, address: Address | None) -> None:
        self._url = self._url or (None if address is None else address.url)


def _egress_url(settings: Settings, address: Address | None) -> str | None:
    """Where sandboxes find the egress door: on the host by which they find the proxy, where that was said."""
    host = urlsplit(settings.url).hostname if settings.url else None
    return None if address is None else Address(host or address.host, address.port).url


def _derived(key: bytes, purpose: bytes) -> bytes:
    """A key for one purpose, from which the one that signs grants cannot be had."""
    return hmac.digest(key, b"galley-vault-proxy/1 " + purpose, "sha256")


@asynccontextmanager
async def _store(settings: Settings, state: State) -> AsyncIterator[SecretStore]:
    if settings.vault is None:
        async with EmbeddedStore.open(settings.home, key=settings.store_key) as embedded:
            yield embedded
    else:
        async with VaultStore.open(settings.vault, state, cache_ttl_s=settings.cache_ttl_s) as vault:
            yield vault


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # These print the URLs that they ask, and a URL of somebody else may hold a key.
    for name in ("httpx2", "httpcore2", "uvicorn", "urllib3", "hvac", "mcp"):
        logging.getLogger(name).setLevel(logging.WARNING)
