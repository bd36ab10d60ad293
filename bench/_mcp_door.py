"""The two programs of the bench of the MCP door: an echo server, and a door in front of it that has a real everything.

    python -m bench._mcp_door server | door UPSTREAM_URL

Each prints its URL when it accepts connections; the door prints a grant behind it.
"""

import asyncio
import contextlib
import ipaddress
import socket
import sys
import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
import uvloop
from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials.port import EnvCredential, Injection
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import NoGate, Registry
from galley_vault_proxy.grant.token import Grant, ServerRule, milliseconds, moment
from galley_vault_proxy.http.serving import serve
from galley_vault_proxy.ids import new_id
from galley_vault_proxy.mcp_door.door import McpDoor
from galley_vault_proxy.mcp_door.pin_state import SCHEMA, StatePins
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State
from mcp.server import MCPServer
from starlette.routing import Router

TOKEN = "ghp_benchbenchbenchbenchbenchbenchbench"


class OneToken:
    """A CredentialSource that has the credential at hand, as within the cache's time."""

    async def for_mcp(
        self, session_id: str, vault_ids: Sequence[str], url: str, *, fresh: bool = False
    ) -> Injection | None:
        return Injection("Authorization", Secret(f"Bearer {TOKEN}"), "vcrd_bench", 1, (Secret(TOKEN),))

    async def for_host(self, session_id: str, vault_ids: Sequence[str]) -> Sequence[EnvCredential]:
        return ()

    async def placeholders(self, session_id: str, vault_ids: Collection[str]) -> dict[str, str]:
        return {}

    async def refresh(self, credential_id: str, seen_version: int) -> bool:
        return False


async def run_server() -> None:
    server = MCPServer("echo", log_level="ERROR")

    @server.tool()
    async def echo(text: str) -> str:
        return text

    listener = socket.create_server(("127.0.0.1", 0))
    say(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp")
    config = uvicorn.Config(server.streamable_http_app(), log_level="error", access_log=False)
    await uvicorn.Server(config).serve(sockets=[listener])


async def run_door(upstream: str) -> None:
    closing = asyncio.Event()
    with tempfile.TemporaryDirectory() as home:
        async with (
            State.open(Path(home) / "state.db", (rows.SCHEMA, SCHEMA)) as state,
            Audit.open(Path(home) / "audit", max_bytes=64 << 20) as audit,
            Registry.open(state, key=b"k" * 32, gate=NoGate()) as registry,
            McpDoor.open(
                registry=registry,
                credentials=OneToken(),
                audit=audit,
                netguard=Netguard((ipaddress.ip_network("127.0.0.0/8"),)),
                pins=StatePins(state),
                key=b"s" * 32,
                closing=closing,
            ) as door,
            serve(
                Router(door.routes()), host="127.0.0.1", port=0, key=Secret("service-key-bench"), closing=closing
            ) as address,
        ):
            grant = Grant(
                id=new_id("grant"),
                session_id="sesn_bench",
                expires_at=moment(milliseconds(datetime.now(UTC) + timedelta(hours=1))),
                servers=(ServerRule("echo", upstream, frozenset({"echo"})),),
            )
            say(f"{address.url}/mcp/echo {await registry.issue(grant)}")
            await asyncio.Event().wait()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run_server() if sys.argv[1] == "server" else run_door(sys.argv[2]))
