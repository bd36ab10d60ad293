"""The models of a Messages API endpoint, as its own list tells them."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import anthropic
from anthropic.types.beta import BetaModelCapabilities
from pydantic import BaseModel, TypeAdapter, ValidationError

from galley_server.wire.base import JSON
from galley_server.wire.model import ModelInfo

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0
_MOST: Final = 1000
_CAPABILITIES: Final = TypeAdapter(BetaModelCapabilities)


class _Entry(BaseModel):
    """What gateways agree on is little; the rest may be missing."""

    id: str
    display_name: str | None = None
    created_at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    lifecycle: Literal["active", "deprecated", "retired"] = "active"
    allowed_fallback_models: tuple[str, ...] | None = None
    capabilities: dict[str, JSON] | None = None
    deprecated_at: datetime | None = None
    line: Literal["haiku", "sonnet", "opus", "fable", "mythos"] | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    retires_at: datetime | None = None

    def shown(self) -> ModelInfo:
        fields = self.model_dump()
        fields["display_name"] = self.display_name or self.id
        fields["capabilities"] = _official(self.capabilities)
        return ModelInfo.model_validate(fields)


class _List(BaseModel):
    data: list[_Entry]


class EndpointDirectory:
    """Asks the endpoint. One that has no such list, or does not answer in time, says nothing."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client.with_options(timeout=_TIMEOUT_S, max_retries=0)

    async def offered(self) -> Sequence[ModelInfo] | None:
        try:
            response = await self._client.beta.models.with_raw_response.list(limit=_MOST)
            return [entry.shown() for entry in _List.model_validate_json(await response.read()).data]
        except (anthropic.AnthropicError, ValidationError) as error:
            logger.info("the model endpoint lists no models: %s", type(error).__name__)
            return None


def _official(capabilities: dict[str, JSON] | None) -> dict[str, JSON] | None:
    """Pass on only what has the official shape: clients read it with the official types."""
    try:
        if capabilities is not None:
            _CAPABILITIES.validate_python(capabilities, strict=True, extra="forbid")
    except ValidationError:
        return None
    return capabilities
