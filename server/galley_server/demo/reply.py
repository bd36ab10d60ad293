"""What a scripted model answers: blocks, a pace, a usage, and the faults a real endpoint can have."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from galley_server.demo.transcript import RedactedThinking, Request, Text, Thinking, ToolUse

Said: TypeAlias = Text | Thinking | RedactedThinking | ToolUse
StopReason: TypeAlias = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded"
]
Place: TypeAlias = int | Literal["text", "thinking", "tool_use"]
"""Where in a stream something happens: after so many events (pings count), or in the middle of the first such block."""

ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the words come. Without delays a whole stream is one write."""

    first_token_s: float = 0.0
    per_token_s: float = 0.0
    chunk_chars: int = 24
    input_chunk_chars: int | None = None
    """The same for the arguments of tool calls, if they shall come in other pieces."""


AT_ONCE: Final = Pace()


@dataclass(frozen=True, slots=True)
class Usage:
    """Given instead of the computed usage, to make a client see any figure."""

    input_tokens: int
    output_tokens: int
    cache_read: int = 0
    cache_creation_5m: int = 0
    cache_creation_1h: int = 0


@dataclass(frozen=True, slots=True)
class StreamError:
    """An `error` event in the middle of the stream; for a request that does not stream, an HTTP error."""

    at: Place = 3
    type: str = "overloaded_error"
    message: str = "Overloaded"


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection ends in the middle of the stream, without an end marker."""

    at: Place = 3


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing comes for a while, then the stream goes on. Endless unless `seconds` is given."""

    at: Place = 3
    seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Hold:
    """The stream waits until the test, in the same event loop, sets `release`; `reached` is set on arrival."""

    at: Place = 3
    release: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


Fault: TypeAlias = StreamError | Drop | Stall | Hold


@dataclass(frozen=True, slots=True)
class Reply:
    content: tuple[Said, ...]
    stop_reason: StopReason | None = None
    """Left out: `tool_use` if there is a tool call, else `end_turn`."""
    stop_sequence: str | None = None
    pace: Pace = AT_ONCE
    usage: Usage | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class ApiError:
    """The request is refused with an HTTP status and the official envelope."""

    status: int
    type: str = ""
    message: str = ""
    retry_after: float | None = None

    @property
    def error_type(self) -> str:
        return self.type or ERROR_TYPES.get(self.status, "api_error")

    @property
    def text(self) -> str:
        return self.message or {429: "Number of requests has exceeded your rate limit", 529: "Overloaded"}.get(
            self.status, f"The script answers this request with {self.status}"
        )


Answer: TypeAlias = Reply | ApiError
Brain: TypeAlias = Callable[[Request], Answer | Awaitable[Answer]]
Ending: TypeAlias = Literal["complete", "client_gone", "fault", "refused"]


@runtime_checkable
class Witness(Protocol):
    """A brain that also wants to hear how each of its answers ended."""

    def ended(self, request: Request, ending: Ending) -> None: ...


def say(text: str, *, pace: Pace = AT_ONCE) -> Reply:
    return Reply((Text(text),), pace=pace)


def call(name: str, /, *, pace: Pace = AT_ONCE, **arguments: str | int | float | bool) -> Reply:
    return Reply((ToolUse(name, dict(arguments)),), pace=pace)
