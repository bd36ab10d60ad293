"""A vault proxy in a process of its own, and a door of a few lines to try grants on, both over real sockets."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from galley_vault_proxy.admin.app import build_http
from galley_vault_proxy.admin.audit import AuditFace
from galley_vault_proxy.admin.grants import GrantFace
from galley_vault_proxy.audit import Audit
from galley_vault_proxy.errors import GrantRefused
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import NoGate, Registry, SessionGate
from galley_vault_proxy.grant.token import Grant, milliseconds, moment
from galley_vault_proxy.http.bearer import grant_in, tunnel_of
from galley_vault_proxy.http.serving import Address, serve
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

KEY = "service-key-0123456789"
GRANT_KEY = b"g" * 32


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("GALLEY_", "VAULT_"))}


@dataclass(frozen=True)
class Proxy:
    """A running `galley-vault-proxy serve`."""

    url: str
    process: asyncio.subprocess.Process

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, headers={"x-api-key": KEY}, trust_env=False, timeout=10)

    async def grant(self, session_id: str = "sesn_1", **more: Any) -> dict[str, Any]:
        body = {"session_id": session_id, "vault_ids": [], "mcp_servers": [], "expires_in": 600, **more}
        async with self.client() as client:
            answer = await client.post("/v1/grants", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(5):
            return await self.process.wait()


@asynccontextmanager
async def proxy(home: Path, *words: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Proxy]:
    """Start one on a free port, wait for its ready line, and see to it that it is gone at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "galley_vault_proxy", "serve", "--port", "0", "--egress-port", "0", *words),
        env={
            **clean_environment(),
            "GALLEY_PROXY_HOME": str(home),
            "GALLEY_PROXY_KEY": KEY,
            **(environ or {}),
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("galley-vault-proxy ready http://"), line
        yield Proxy(line.split()[-1], process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Door:
    """Answers `ok` to a grant that counts; `/stream` sends a byte and then keeps the answer open until it does not."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            grant = await self._registry.lookup(grant_in(scope["headers"]), tunnel_of(scope))
        except GrantRefused as error:
            await _answer(send, 401, error.reason.encode())
            return
        if not scope["path"].endswith("/stream"):
            await _answer(send, 200, b"ok")
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b".", "more_body": True})
        try:
            async with self._registry.hold(grant):
                await asyncio.Event().wait()
        except GrantRefused as error:
            await send({"type": "http.response.body", "body": error.reason.encode()})


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True)
class Spine:
    """The spine in this process: registry, API and a door, on a port and a Unix socket."""

    registry: Registry
    audit: Audit
    address: Address
    uds: Path

    def client(self, token: str | None = None) -> httpx2.AsyncClient:
        headers = {"x-api-key": KEY} if token is None else {"authorization": f"Bearer {token}"}
        return httpx2.AsyncClient(base_url=self.address.url, headers=headers, trust_env=False, timeout=10)

    async def issue(self, session_id: str = "sesn_1", *, seconds: float = 600, tunnel: str | None = None) -> str:
        return await self.registry.issue(a_grant(session_id, seconds=seconds, tunnel=tunnel))


def a_grant(session_id: str = "sesn_1", *, seconds: float = 600, tunnel: str | None = None) -> Grant:
    end = moment(milliseconds(datetime.now(UTC) + timedelta(seconds=seconds)))
    return Grant(new_id("grant"), session_id, end, tunnel=tunnel)


@asynccontextmanager
async def spine(home: Path, gate: SessionGate | None = None) -> AsyncIterator[Spine]:
    closing = asyncio.Event()
    async with (
        State.open(home / "state.db", [rows.SCHEMA]) as state,
        Audit.open(home / "audit", max_bytes=8 << 20) as audit,
        Registry.open(state, key=GRANT_KEY, gate=gate or NoGate()) as registry,
    ):
        door = Door(registry)
        doors = [Route("/mcp/{name}", door), Route("/mcp/{name}/stream", door)]
        app = build_http([GrantFace(registry, audit), AuditFace(audit)], key=Secret(KEY), audit=audit, doors=doors)
        uds = home / "p.sock"
        async with serve(app, host="127.0.0.1", port=0, key=Secret(KEY), closing=closing, uds=uds) as address:
            yield Spine(registry, audit, address, uds)
