"""The first line of a connection that comes out of a sandbox: which tunnel it came through. Pure, but for one reader.

    GALLEY-TUNNEL/1 <tunnel id> <hex HMAC-SHA256(service key, tunnel id)>\n

Whoever runs the tunnel writes it, on the proxy's Unix socket, before it passes on the first byte of the sandbox. The
sandbox cannot write one itself: it does not know the service key, and what it sends comes after this line.
"""

import asyncio
import hmac
import re
from typing import Final

from galley_vault_proxy.errors import Unauthenticated
from galley_vault_proxy.secret import Secret

MARK: Final = b"GALLEY-TUNNEL/1 "
LONGEST: Final = 256
_LINE: Final = re.compile(rb"GALLEY-TUNNEL/1 ([A-Za-z0-9_-]{1,128}) ([0-9a-f]{64})\r?\n")
_TUNNEL: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


def greeting(key: Secret, tunnel: str) -> bytes:
    """The line for a tunnel."""
    if not _TUNNEL.fullmatch(tunnel):
        raise ValueError("a tunnel id is 1 to 128 letters, digits, - and _")
    return MARK + f"{tunnel} {_proof(key, tunnel)}\n".encode()


def tunnel_in(key: Secret, line: bytes) -> str:
    """The tunnel that a whole line names. Raises Unauthenticated: whatever follows must not be served."""
    found = _LINE.fullmatch(line) if len(line) <= LONGEST else None
    if found is None:
        raise Unauthenticated("the first line of this connection is not a tunnel's greeting")
    tunnel = found[1].decode()
    if not hmac.compare_digest(_proof(key, tunnel).encode(), found[2]):
        raise Unauthenticated("the first line of this connection was not written with this proxy's service key")
    return tunnel


class Opening:
    """Finds the greeting in the first bytes of a connection. Feed it until it has `decided`."""

    def __init__(self, key: Secret) -> None:
        self._key = key
        self._held = b""
        self.decided = False
        self.tunnel: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what is left for the protocol after the greeting. Raises Unauthenticated."""
        if self.decided:
            return data
        held = self._held + data
        if not MARK.startswith(held[: len(MARK)]):
            # No greeting: a connection that came through no tunnel.
            self.decided, self._held = True, b""
            return held
        line, newline, rest = held.partition(b"\n")
        if not newline:
            self._held = held
            if len(held) > LONGEST:
                raise Unauthenticated("the first line of this connection is not a tunnel's greeting")
            return b""
        self.tunnel = tunnel_in(self._key, line + newline)
        self.decided, self._held = True, b""
        return rest


async def read_opening(reader: asyncio.StreamReader, key: Secret) -> tuple[str | None, bytes]:
    """Return the tunnel, if any, and the bytes after it that were read along. Raises Unauthenticated.

    The caller bounds the time. At the end of the stream: no tunnel and what came.
    """
    opening = Opening(key)
    rest = b""
    while not opening.decided:
        data = await reader.read(LONGEST)
        rest = opening.feed(data)
        if not data:
            break
    return opening.tunnel, rest


def _proof(key: Secret, tunnel: str) -> str:
    return hmac.digest(key.reveal().encode(), tunnel.encode(), "sha256").hex()
