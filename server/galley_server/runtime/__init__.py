"""What both faces call: rules of agents, environments, sessions, events, files, models. No HTTP and no MCP here."""
