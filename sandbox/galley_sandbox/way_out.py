"""What a sandbox is given so that its programs find the way out: ports, variables, authorities, a token.

The way itself is two ports on the sandbox's loopback. `environment_of` says what follows from them; `equip` carries
it into a sandbox, the first time or again with a renewed token; `forward` connects who comes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from galley_sandbox.errors import SandboxLost
from galley_sandbox.port import Hand, Tunnel

EGRESS: Final = "egress"
MCP: Final = "mcp"
PORTS: Final[Mapping[str, int]] = {EGRESS: 8431, MCP: 8430}
_FOLDER: Final = "/home/agent/.galley"
TOKEN_FILE: Final = f"{_FOLDER}/token"
BUNDLE: Final = f"{_FOLDER}/ca-bundle.pem"
AUTHORITY: Final = f"{_FOLDER}/ca.pem"
_DIAL_S: Final = 10.0
_FAREWELL_S: Final = 5.0
_READ: Final = 256 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WayOut:
    """`ports`: what `Hand.listen` gave for `PORTS`. `placeholders`: what stands for each secret, by variable."""

    ports: Mapping[str, int]
    token: str = field(repr=False)
    authority_pem: bytes
    placeholders: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Door:
    """A Unix socket of the vault proxy, and the line that it must hear first: who runs the tunnel, and which it is."""

    path: str
    greeting: bytes = field(repr=False)


def environment_of(way: WayOut) -> dict[str, str]:
    """The variables. A placeholder never takes the place of one that shows the way."""
    proxy = f"http://galley:{way.token}@127.0.0.1:{way.ports[EGRESS]}"
    nearby = "localhost,127.0.0.1,::1"
    return {
        **way.placeholders,
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "NO_PROXY": nearby,
        "http_proxy": proxy,
        "https_proxy": proxy,
        "no_proxy": nearby,
        "NODE_USE_ENV_PROXY": "1",
        "GALLEY_MCP_URL": f"http://127.0.0.1:{way.ports[MCP]}/mcp",
        "GALLEY_TOKEN_FILE": TOKEN_FILE,
        "SSL_CERT_FILE": BUNDLE,
        "REQUESTS_CA_BUNDLE": BUNDLE,
        "CURL_CA_BUNDLE": BUNDLE,
        "GIT_SSL_CAINFO": BUNDLE,
        "AWS_CA_BUNDLE": BUNDLE,
        "CARGO_HTTP_CAINFO": BUNDLE,
        # Node has its own authorities, and only adds to them.
        "NODE_EXTRA_CA_CERTS": AUTHORITY,
    }


async def equip(hand: Hand, way: WayOut) -> None:
    """Put everything in its place; again for a renewed token. Raises FileRefused, SandboxLost."""
    await hand.put_file(AUTHORITY, _once(way.authority_pem))
    await hand.put_file(BUNDLE, _once(way.authority_pem), after_roots=True)
    await renew(hand, way)


async def renew(hand: Hand, way: WayOut) -> None:
    """What changes with the token, and with the credentials."""
    await hand.put_file(TOKEN_FILE, _once(way.token.encode() + b"\n"), mode=0o600)
    await hand.set_environment(environment_of(way))


async def forward(hand: Hand, doors: Mapping[str, Door]) -> None:
    """Connect every tunnel to its door, until the stream drops: then raises SandboxLost. Cancel it to stop."""
    try:
        async with asyncio.TaskGroup() as tasks:
            async for tunnel in hand.tunnels():
                tasks.create_task(_connect(tunnel, doors[tunnel.door]), name=f"tunnel-{tunnel.door}")
    except BaseExceptionGroup as group:
        # The end of the stream ends everything; the tunnels' own ends are dealt with where they happen.
        raise group.exceptions[0] from None


async def _connect(tunnel: Tunnel, door: Door) -> None:
    try:
        async with asyncio.timeout(_DIAL_S):
            reader, writer = await asyncio.open_unix_connection(door.path)
    except OSError as e:  # a timeout is one too
        logger.warning("the vault proxy does not answer on %s: %s", door.path, e)
        tunnel.close()
        return
    try:
        writer.write(door.greeting)
        await _both_ways(tunnel, reader, writer)
        writer.close()
        async with asyncio.timeout(_FAREWELL_S):
            await writer.wait_closed()
    except (OSError, SandboxLost):
        pass  # one of the two is gone, and takes the other along
    finally:
        writer.transport.abort()
        tunnel.close()


async def _both_ways(tunnel: Tunnel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def out() -> None:
        while data := await tunnel.read():
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def back() -> None:
        while data := await reader.read(_READ):
            await tunnel.write(data)
        await tunnel.end()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(out(), name="tunnel-out")
            tasks.create_task(back(), name="tunnel-back")
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
