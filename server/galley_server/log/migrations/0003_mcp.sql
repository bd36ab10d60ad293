-- Nothing of the schema changes. The log has rows from here on that an older Galley would pass over, calls of MCP tools
-- among them, and it must not go on with such a session.
SELECT 1;
