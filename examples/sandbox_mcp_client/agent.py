"""Code of an agent calls an MCP tool with the plain `mcp` client. It holds a grant, and no credential.

    python3 agent.py SERVER                       # what the server offers, as far as the grant allows it
    python3 agent.py SERVER TOOL ['{"a": 1}']     # call a tool

It needs two variables, which whoever made the sandbox has set: GALLEY_MCP_URL, where the vault proxy's MCP door is, and
GALLEY_TOKEN_FILE, a file with the grant.
"""

import asyncio
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent


class Grant(httpx2.Auth):
    """Sends the grant, read anew for each request: it is renewed in place while the program runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["authorization"] = f"Bearer {self._file.read_text().strip()}"
        yield request


async def main(server: str, tool: str | None = None, arguments: str = "{}") -> int:
    url = f"{os.environ['GALLEY_MCP_URL']}/{server}"
    grant = Grant(Path(os.environ["GALLEY_TOKEN_FILE"]))
    async with (
        httpx2.AsyncClient(auth=grant, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        if tool is None:
            for offered in (await client.list_tools()).tools:
                print(f"{offered.name}: {(offered.description or '').partition(chr(10))[0]}")
            return 0
        asked: dict[str, Any] = json.loads(arguments)
        result = await client.call_tool(tool, asked)
    said = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    print(said, file=sys.stderr if result.is_error else sys.stdout)
    return 1 if result.is_error else 0


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit("usage: agent.py SERVER [TOOL [ARGUMENTS-AS-JSON]]")
    sys.exit(asyncio.run(main(*sys.argv[1:])))
