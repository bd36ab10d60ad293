"""The sample's MCP server on stdio: it has a credential in its environment, in a sandbox that the proxy made for it."""

import os

from mcp.server import MCPServer

server = MCPServer("sample")


@server.tool()
def has_credential() -> bool:
    """Whether the credential is here."""
    return os.environ.get("SAMPLE_TOKEN", "").startswith("sample-secret-")


if __name__ == "__main__":
    server.run("stdio")
