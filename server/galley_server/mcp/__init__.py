"""The MCP face: the stdio shim, the Unix socket and the HTTP endpoint, all serving one definition of tools."""
