"""OAuth for MCP servers: finding the authorization server, consent by URL, and new tokens in time."""
