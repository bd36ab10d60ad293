"""The sample's world outside, behind TLS: an MCP server that wants a token, and an HTTPS API that wants a key.

    outside.py TLS-FOLDER SECRETS-FOLDER PORT

`GET /echo` says whether the right key came, and repeats every header that came: as careless a host as there can be.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

server = MCPServer("sample")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def drop_everything() -> str:
    """Nothing that an agent should be able to call."""
    return "gone"


class Behind:
    """Lets nobody through without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (b"authorization", self._wanted) not in scope["headers"]:
            await JSONResponse({"error": "unauthorised"}, 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def build(token: str, api_key: str) -> Starlette:
    async def echo(request: Request) -> JSONResponse:
        authorised = request.headers.get("x-api-key") == api_key
        return JSONResponse({"authorised": authorised, "headers": dict(request.headers)})

    # It is reached by its own names only, through TLS: no web page can be led to it.
    anybody = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    mcp = server.streamable_http_app(transport_security=anybody)
    routes = [Route("/echo", echo, methods=["GET", "POST"]), Mount("/", Behind(mcp, token))]

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        async with mcp.router.lifespan_context(mcp):
            yield

    return Starlette(routes=routes, lifespan=running)


def main(tls: Path, secrets: Path, port: int) -> None:
    app = build((secrets / "mcp_token").read_text().strip(), (secrets / "api_key").read_text().strip())
    uvicorn.run(
        app,
        host="0.0.0.0",
        port=port,
        ssl_certfile=tls / "server.pem",
        ssl_keyfile=tls / "server.key",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
