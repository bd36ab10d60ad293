"""The door itself: listens, bounds who may be connected, and hands each connection on."""

import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials.port import CredentialSource
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.serving import Address, bind, unix_socket
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.secret import Secret


@dataclass(frozen=True, slots=True)
class Parts:
    """What the door is built on. `upstream_tls` None: the system's certificate authorities (or SSL_CERT_FILE)."""

    registry: Registry
    audit: Audit
    guard: Netguard
    credentials: CredentialSource
    key: Secret
    """The service key, with which tunnels greet on the Unix socket."""
    home: Path
    """The proxy's home: the authority that signs for intercepted hosts is kept in it."""
    upstream_tls: ssl.SSLContext | None = None


class EgressDoor:
    """An HTTP proxy on a TCP address and, if given, on a Unix socket that tunnels end at."""

    def __init__(self, address: Address, ca_pem: bytes) -> None:
        self.address = address
        self.ca_pem = ca_pem
        """What a sandbox must trust, beside what it trusts already."""

    @classmethod
    @asynccontextmanager
    async def open(cls, parts: Parts, *, host: str, port: int, uds: Path | None = None) -> AsyncIterator[Self]:
        """Accept connections inside the block. Raises ConfigError if the address or the authority cannot be had."""
        with ExitStack() as sockets:
            listeners = [sockets.enter_context(await bind(host, port))]
            if uds is not None:
                listeners.append(sockets.enter_context(unix_socket(uds)))
            yield cls(Address(host, listeners[0].getsockname()[1]), b"")
