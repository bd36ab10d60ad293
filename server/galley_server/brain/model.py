"""One request to the model: the Messages API through the `anthropic` SDK, streamed, with every failure typed.

Knows nothing of sessions or the log. Retries are not made here: they are steps of the brain, and are logged.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, Self, TypeAlias

import anthropic
import httpx2
from anthropic.types.raw_message_stream_event import RawMessageStreamEvent

from galley_server.brain.endpoint import Endpoint
from galley_server.errors import GalleyError
from galley_server.secret import Secret
from galley_server.settings import ModelSettings
from galley_server.wire.base import JSON
from galley_server.wire.events import ModelUsage, PlainErrorType

MAX_OUTPUT_TOKENS: Final = 16_384
_MESSAGE_LIMIT: Final = 500
_PERMANENT: Final = frozenset({400, 401, 402, 403, 404, 405, 413, 422})


class ModelFailed(GalleyError):
    """The request came to nothing. `retry_after` is the wait that the endpoint asked for, in seconds."""

    def __init__(
        self, message: str, *, type: PlainErrorType, retryable: bool, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.type: PlainErrorType = type
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A Messages API request, ready to send. `system`, `messages` and `tools` are in API shape."""

    model: str
    system: Sequence[Mapping[str, JSON]]
    messages: Sequence[Mapping[str, JSON]]
    tools: Sequence[Mapping[str, JSON]]
    effort: str | None = None
    thinking: bool = False
    speed: Literal["standard", "fast"] | None = None

    def body(self) -> dict[str, JSON]:
        body: dict[str, JSON] = {
            "model": self.model,
            "max_tokens": MAX_OUTPUT_TOKENS,
            "messages": [dict(message) for message in self.messages],
            "stream": True,
        }
        if self.system:
            body["system"] = [dict(block) for block in self.system]
        if self.tools:
            body["tools"] = [dict(tool) for tool in self.tools]
        if self.thinking:
            body["thinking"] = {"type": "adaptive"}
        if self.effort is not None:
            body["output_config"] = {"effort": self.effort}
        if self.speed == "fast":
            body["speed"] = "fast"
        return body


@dataclass(frozen=True, slots=True)
class TextDelta:
    """`index` counts the text blocks of the answer, not all its blocks."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingBegun:
    pass


@dataclass(frozen=True, slots=True)
class ToolBegun:
    name: str


Progress: TypeAlias = TextDelta | ThinkingBegun | ToolBegun


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. `blocks` are in the shape in which the API takes them back."""

    blocks: tuple[dict[str, JSON], ...]
    stop_reason: str
    usage: ModelUsage
    stop_details: Mapping[str, JSON] | None = None


class Model(Protocol):
    async def answer(self, request: ModelRequest, progress: Callable[[Progress], None]) -> Answer:
        """Ask once, telling `progress` what streams by. Raises ModelFailed; cancelling it closes the request."""
        ...


class MessagesModel:
    """Any endpoint that speaks the Messages API."""

    def __init__(self, endpoint: Endpoint, secrets: Sequence[Secret]) -> None:
        self._endpoint = endpoint
        self._secrets = secrets

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ModelSettings) -> AsyncIterator[Self]:
        secrets = [secret for secret in (settings.api_key, settings.auth_token) if secret is not None]
        async with Endpoint.open(settings) as endpoint:
            yield cls(endpoint, secrets)

    @property
    def client(self) -> anthropic.AsyncAnthropic:
        """For whoever asks the same endpoint something else than for an answer."""
        return self._endpoint.first

    async def answer(self, request: ModelRequest, progress: Callable[[Progress], None]) -> Answer:
        if not self._secrets:
            raise ModelFailed(
                "No key for the model endpoint: set GALLEY_MODEL_API_KEY or ANTHROPIC_API_KEY and restart the server.",
                type="model_request_failed_error",
                retryable=False,
            )
        try:
            return await self._stream(request, progress)
        except anthropic.APIStatusError as error:
            raise self._refused(error) from None
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            raise ModelFailed(
                f"The connection to the model endpoint failed ({type(error).__name__}).",
                type="model_request_failed_error",
                retryable=True,
            ) from None
        except (anthropic.APIError, ValueError, LookupError, AttributeError) as error:
            # What the SDK or the collector trips over when an endpoint answers in a form of its own.
            raise ModelFailed(
                f"The model endpoint's answer is not in the Messages API's form ({type(error).__name__}).",
                type="model_request_failed_error",
                retryable=True,
            ) from error

    async def _stream(self, request: ModelRequest, progress: Callable[[Progress], None]) -> Answer:
        collector = _Collector(progress)
        with self._endpoint.client() as client:
            stream = await client.post(
                "/v1/messages",
                # As `body` it would first be copied, value by value, with every earlier turn of the session in it.
                content=json.dumps(request.body(), ensure_ascii=False, separators=(",", ":")).encode(),
                cast_to=anthropic.types.Message,
                stream=True,
                stream_cls=anthropic.AsyncStream[RawMessageStreamEvent],
            )
            async with stream:
                async for event in stream:
                    collector.feed(event)
        return collector.finish()

    def _refused(self, error: anthropic.APIStatusError) -> ModelFailed:
        kind, text = _envelope(error)
        for secret in self._secrets:
            text = text.replace(secret.reveal(), "***")
        status = error.status_code
        message = f"The model endpoint answered {status}: {text}" if status >= 400 else f"The model failed: {text}"
        if status == 402 or kind == "billing_error":
            return ModelFailed(message, type="billing_error", retryable=False)
        if status in _PERMANENT or kind in ("invalid_request_error", "authentication_error", "permission_error"):
            return ModelFailed(message, type="model_request_failed_error", retryable=False)
        error_type: PlainErrorType = "model_request_failed_error"
        if status == 429 or kind == "rate_limit_error":
            error_type = "model_rate_limited_error"
        elif status == 529 or kind == "overloaded_error":
            error_type = "model_overloaded_error"
        return ModelFailed(message, type=error_type, retryable=True, retry_after=_retry_after(error.response))


def _envelope(error: anthropic.APIStatusError) -> tuple[str, str]:
    """Return type and message of an official error envelope; another body is named by its type only, never quoted."""
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    if not isinstance(inner, dict):
        return "", "an error that is not in the Messages API's form"
    return str(inner.get("type", "")), str(inner.get("message", ""))[:_MESSAGE_LIMIT]


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return None


@dataclass(slots=True)
class _Block:
    start: dict[str, JSON]
    text: list[str] = field(default_factory=list)
    signature: str | None = None
    text_index: int = 0


class _Collector:
    """Puts streamed events together. `finish` gives the answer, or raises if the stream ended before its end."""

    def __init__(self, progress: Callable[[Progress], None]) -> None:
        self._progress = progress
        self._open: dict[int, _Block] = {}
        self._done: dict[int, dict[str, JSON]] = {}
        self._texts = 0
        self._usage = ModelUsage()
        self._stop_reason: str | None = None
        self._stop_details: Mapping[str, JSON] | None = None
        self._stopped = False
        self._bad_input = False

    def feed(self, event: RawMessageStreamEvent) -> None:
        match event.type:
            case "message_start":
                self._count(event.message.usage)
            case "content_block_start":
                self._begin(event.index, event.content_block.model_dump(mode="json", exclude_none=True))
            case "content_block_delta":
                self._delta(event.index, event.delta)
            case "content_block_stop":
                block = _closed(self._open.pop(event.index))
                if block is None:
                    self._bad_input = True
                else:
                    self._done[event.index] = block
            case "message_delta":
                self._count(event.usage)
                self._stop_reason = event.delta.stop_reason
                details = getattr(event.delta, "stop_details", None)
                self._stop_details = details.model_dump(mode="json") if details is not None else None
            case "message_stop":
                self._stopped = True

    def finish(self) -> Answer:
        if not self._stopped or self._stop_reason is None:
            raise ModelFailed(
                "The model's stream ended before its answer did.", type="model_request_failed_error", retryable=True
            )
        # An answer cut off in the middle of a call has half a JSON object: that call was never made.
        if self._bad_input and self._stop_reason != "max_tokens":
            raise ModelFailed(
                "The model called a tool with input that is not a JSON object.",
                type="model_request_failed_error",
                retryable=True,
            )
        blocks = tuple(self._done[index] for index in sorted(self._done))
        return Answer(blocks, self._stop_reason, self._usage, self._stop_details)

    def _begin(self, index: int, start: dict[str, JSON]) -> None:
        block = self._open[index] = _Block(start)
        match start.get("type"):
            case "text":
                block.text_index = self._texts
                self._texts += 1
                if start.get("text"):
                    self._add_text(block, str(start["text"]))
            case "thinking" | "redacted_thinking":
                self._progress(ThinkingBegun())
            case "tool_use":
                self._progress(ToolBegun(str(start.get("name", ""))))
            case _:
                pass  # a kind of block newer than this code goes back to the API as it came

    def _delta(self, index: int, delta: object) -> None:
        block = self._open[index]
        match getattr(delta, "type", None):
            case "text_delta":
                self._add_text(block, str(getattr(delta, "text", "")))
            case "thinking_delta":
                block.text.append(str(getattr(delta, "thinking", "")))
            case "input_json_delta":
                block.text.append(str(getattr(delta, "partial_json", "")))
            case "signature_delta":
                block.signature = str(getattr(delta, "signature", ""))
            case _:
                pass

    def _add_text(self, block: _Block, text: str) -> None:
        block.text.append(text)
        self._progress(TextDelta(block.text_index, text))

    def _count(self, usage: object) -> None:
        """Usage comes in parts; a later part replaces the fields it names."""
        found = {
            name: value
            for name in ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
            if isinstance(value := getattr(usage, name, None), int)
        }
        self._usage = self._usage.model_copy(update=found)


def _closed(block: _Block) -> dict[str, JSON] | None:
    """Return the block in the shape in which a later request gives it back, None for a call without usable input."""
    text = "".join(block.text)
    match block.start.get("type"):
        case "text":
            return {"type": "text", "text": text}
        case "thinking":
            signature = block.signature if block.signature is not None else block.start.get("signature", "")
            return {"type": "thinking", "thinking": str(block.start.get("thinking", "")) + text, "signature": signature}
        case "tool_use":
            given = _tool_input(text, block.start.get("input"))
            called = {"type": "tool_use", "id": block.start["id"], "name": block.start["name"]}
            return None if given is None else {**called, "input": given}
        case _:
            return block.start


def _tool_input(text: str, initial: JSON) -> dict[str, JSON] | None:
    if not text:
        return initial if isinstance(initial, dict) else {}
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
