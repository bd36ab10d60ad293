"""A door that brings its own grant, for clients that cannot send one: the conformance suite, and benches.

python -m tests.integration.mcp_door_program UPSTREAM_URL [--port PORT]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from tests.integration.mcp_door_kit import CANARY, Opened, Outer, open_door


class WithGrant(Outer):
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream

    async def __call__(self, app: ASGIApp, opened: Opened) -> ASGIApp:
        opened.credentials.tokens[self._upstream] = CANARY
        token = await opened.token({"up": self._upstream}, expires_in=3600)
        sys.stderr.write(f"token {token}\n")

        async def granted(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [*scope["headers"], (b"authorization", f"Bearer {token}".encode())]
            await app({**scope, "headers": headers}, receive, send)

        return granted


async def main(upstream: str, port: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        async with open_door(Path(home), port=port, outer=WithGrant(upstream)) as opened:
            sys.stdout.write(f"{opened.url}/up\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("upstream")
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    try:
        import uvloop

        uvloop.run(main(chosen.upstream, chosen.port))
    except KeyboardInterrupt:
        pass
