"""Where the vault proxy is, and the line with which a sandbox's tunnel is announced to it."""

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from galley_server.secret import Secret

API_SOCKET: Final = "proxy.sock"
EGRESS_SOCKET: Final = "egress.sock"


@dataclass(frozen=True, slots=True)
class Sockets:
    """`api`: the API and the MCP door. `egress`: the egress door."""

    api: Path
    egress: Path

    @classmethod
    def within(cls, folder: Path) -> "Sockets":
        return cls(folder / API_SOCKET, folder / EGRESS_SOCKET)


def greeting(key: Secret, tunnel: str) -> bytes:
    """The first line of a connection that comes out of a sandbox (docs/grants.md, "Tunnels").

    Who has no service key cannot write it, and the sandbox's own bytes come after it.
    """
    proof = hmac.digest(key.reveal().encode(), tunnel.encode(), "sha256").hex()
    return f"GALLEY-TUNNEL/1 {tunnel} {proof}\n".encode()
