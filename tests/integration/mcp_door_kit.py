"""A door on a free port, with everything behind it real but the secret store and the servers outside."""

import asyncio
import ipaddress
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from galley_vault_proxy.audit import Audit, AuditLine, AuditQuery
from galley_vault_proxy.config import StdioServer
from galley_vault_proxy.credentials.port import EnvCredential, Injection
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import NoGate, Registry
from galley_vault_proxy.grant.token import Grant, ServerRule, milliseconds, moment
from galley_vault_proxy.http.serving import serve
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.mcp_door.door import McpDoor
from galley_vault_proxy.mcp_door.limits import Limits
from galley_vault_proxy.mcp_door.pin_state import SCHEMA as PINS
from galley_vault_proxy.mcp_door.pin_state import StatePins
from galley_vault_proxy.mcp_door.pins import PinStore
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State
from starlette.routing import Router
from starlette.types import ASGIApp

CANARY = "canary-7f3a/9+Qz=secret"
SERVICE_KEY = Secret("service-key-for-tests")
EVERYTHING = str(Path(__file__).with_name("mcp_everything_program.py"))
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@dataclass
class KnownCredentials:
    """A CredentialSource with one bearer token per URL. `renewals`: what each one becomes when it is refused."""

    tokens: dict[str, str] = field(default_factory=dict)
    renewals: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    refreshed: list[tuple[str, int]] = field(default_factory=list)

    async def for_mcp(
        self, session_id: str, vault_ids: Sequence[str], url: str, *, fresh: bool = False
    ) -> Injection | None:
        token = self.tokens.get(url)
        if token is None:
            return None
        version = self.versions.get(url, 1)
        return Injection("Authorization", Secret(f"Bearer {token}"), self.id_of(url), version, (Secret(token),))

    async def for_host(self, session_id: str, vault_ids: Sequence[str]) -> Sequence[EnvCredential]:
        return ()

    async def placeholders(self, session_id: str, vault_ids: Collection[str]) -> dict[str, str]:
        return {}

    async def refresh(self, credential_id: str, seen_version: int) -> bool:
        self.refreshed.append((credential_id, seen_version))
        for url, token in self.renewals.items():
            if credential_id == self.id_of(url):
                self.rotate(url, token)
                return True
        return False

    def id_of(self, url: str) -> str:
        return f"vcrd_{_plain(url)}"

    def rotate(self, url: str, token: str) -> None:
        self.tokens[url] = token
        self.versions[url] = self.versions.get(url, 1) + 1


def _plain(url: str) -> str:
    return "".join(c for c in url if c.isalnum())[-40:]


class WatchedAudit(Audit):
    """An audit that a test can wait for."""

    told: asyncio.Event

    def record(self, line: AuditLine) -> None:
        super().record(line)
        self.told.set()


@dataclass
class Opened:
    """A running door."""

    url: str
    registry: Registry
    audit: WatchedAudit
    credentials: KnownCredentials
    pins: PinStore
    closing: asyncio.Event

    async def token(
        self,
        servers: Mapping[str, str],
        *,
        tools: Collection[str] | None = None,
        session: str = "sesn_1",
        tunnel: str | None = None,
        expires_in: float = 600,
    ) -> str:
        return await self.registry.issue(grant(servers, tools=tools, session=session, tunnel=tunnel, s=expires_in))

    async def line(self, **wanted: str) -> dict[str, object]:
        """The first line of this kind, as soon as there is one."""
        async with asyncio.timeout(5):
            while True:
                self.audit.told.clear()
                if found := await self.lines(**wanted):
                    return found[0]
                await self.audit.told.wait()

    async def lines(self, **wanted: str) -> list[dict[str, object]]:
        page = await self.audit.query(AuditQuery(limit=1000))
        return [dict(line) for line in page.data if all(line.get(key) == value for key, value in wanted.items())]


def grant(
    servers: Mapping[str, str],
    *,
    tools: Collection[str] | None = None,
    session: str = "sesn_1",
    tunnel: str | None = None,
    s: float = 600,
) -> Grant:
    return Grant(
        id=new_id("grant"),
        session_id=session,
        expires_at=moment(milliseconds(datetime.now(UTC) + timedelta(seconds=s))),
        vault_ids=("vlt_1",),
        servers=tuple(
            ServerRule(name, url, None if tools is None else frozenset(tools)) for name, url in servers.items()
        ),
        tunnel=tunnel,
    )


@asynccontextmanager
async def open_door(
    home: Path,
    *,
    limits: Limits | None = None,
    pins: PinStore | None = None,
    stdio: Mapping[str, StdioServer] | None = None,
    port: int = 0,
    uds: Path | None = None,
    outer: "Outer | None" = None,
) -> AsyncIterator[Opened]:
    closing = asyncio.Event()
    credentials = KnownCredentials()
    async with (
        State.open(home / "state.db", (rows.SCHEMA, PINS)) as state,
        WatchedAudit.open(home / "audit", max_bytes=8 << 20) as audit,
        Registry.open(state, key=b"k" * 32, gate=NoGate()) as registry,
    ):
        audit.told = asyncio.Event()
        kept = pins or StatePins(state)
        async with McpDoor.open(
            registry=registry,
            credentials=credentials,
            audit=audit,
            netguard=Netguard(LOOPBACK),
            pins=kept,
            key=b"s" * 32,
            closing=closing,
            hosts=frozenset({"127.0.0.1", "localhost"}),
            stdio=stdio,
            limits=limits,
        ) as door:
            app: ASGIApp = Router(door.routes(), redirect_slashes=False)
            opened = Opened("", registry, audit, credentials, kept, closing)
            if outer is not None:
                app = await outer(app, opened)
            async with serve(app, host="127.0.0.1", port=port, key=SERVICE_KEY, closing=closing, uds=uds) as address:
                yield replace(opened, url=f"http://127.0.0.1:{address.port}/mcp")


@asynccontextmanager
async def everything(*options: str) -> AsyncIterator[str]:
    """The server with everything, in a process of its own; its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "ignore",
        EVERYTHING,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}/{'sse' if options[0] == 'sse' else 'mcp'}"
    finally:
        process.kill()
        await process.wait()


class Outer:
    """Something around the door that needs it open: see `mcp_door_program`."""

    async def __call__(self, app: ASGIApp, opened: Opened) -> ASGIApp:
        raise TypeError("give a subclass")
