"""Models as the API lists them. Source of the shape: `anthropic.types.beta`, package 2.12."""

from typing import Literal

from galley_server.wire.base import JSON, Timestamp, Wire


class ModelInfo(Wire):
    """`capabilities` is what the model endpoint says about its model, word for word, null when it says nothing."""

    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: Timestamp
    lifecycle: Literal["active", "deprecated", "retired"] = "active"
    allowed_fallback_models: tuple[str, ...] | None = None
    capabilities: dict[str, JSON] | None = None
    deprecated_at: Timestamp | None = None
    line: Literal["haiku", "sonnet", "opus", "fable", "mythos"] | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    retires_at: Timestamp | None = None
