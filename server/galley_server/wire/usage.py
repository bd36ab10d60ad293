"""What a session has used so far, in official shape."""

from galley_server.wire.base import Wire


class CacheCreation(Wire):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class SessionUsage(Wire):
    """Cumulative. `input_tokens` counts only what was not read from or written to the prompt cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation: CacheCreation = CacheCreation()
    active_seconds: float = 0.0
    # Nothing of either is counted: Galley knows no prices and offers no tool of the model's provider.
    list_cost: None = None
    server_tool_use: None = None
