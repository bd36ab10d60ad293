"""The MCP door: between a sandbox and every MCP server outside."""
