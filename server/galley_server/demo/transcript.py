"""What a Messages-API request says, as data: the turns so far, the tools on offer, and the body as it was sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
Role: TypeAlias = Literal["user", "assistant", "system"]


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """In a reply the signature is left empty: the server signs."""

    thinking: str
    signature: str = ""


@dataclass(frozen=True, slots=True)
class RedactedThinking:
    """In a reply the data is left empty: the server fills it."""

    data: str = ""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """In a reply an empty id means: the server makes one."""

    name: str
    input: Mapping[str, JSON]
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    tool_use_id: str
    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Opaque:
    """A block that is checked for its shape and that no scripted brain looks into (an image, a document)."""

    type: str


Block: TypeAlias = Text | Thinking | RedactedThinking | ToolUse | ToolResult | Opaque


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Request:
    model: str
    max_tokens: int
    system: str
    messages: tuple[Message, ...]
    tool_names: tuple[str, ...]
    stream: bool
    thinking: bool
    body: Mapping[str, JSON]
    """The parsed body exactly as it came, for a test to assert on."""

    @property
    def asked(self) -> str:
        """The newest text a user wrote."""
        position = self._newest_question()
        if position is None:
            return ""
        message, block = position
        return "\n".join(part.text for part in self.messages[message].content[: block + 1] if isinstance(part, Text))

    @property
    def asked_earlier(self) -> str:
        """What the user wrote before that."""
        position = self._newest_question()
        return "\n".join(
            part.text
            for message in self.messages[: position[0] if position else 0]
            if message.role == "user"
            for part in message.content
            if isinstance(part, Text)
        )

    @property
    def questions(self) -> int:
        """How many user messages carry text: the number of the current turn."""
        return sum(
            message.role == "user" and any(isinstance(part, Text) for part in message.content)
            for message in self.messages
        )

    @property
    def steps(self) -> tuple[tuple[ToolUse, ToolResult], ...]:
        """Every call made since the user last wrote, with its result, in the order of the results."""
        position = self._newest_question()
        if position is None:
            return ()
        start, offset = position
        calls: dict[str, ToolUse] = {}
        done: list[tuple[ToolUse, ToolResult]] = []
        for index, message in enumerate(self.messages[start:]):
            for part in message.content[offset if index == 0 else 0 :]:
                if isinstance(part, ToolUse):
                    calls[part.id] = part
                elif isinstance(part, ToolResult) and part.tool_use_id in calls:
                    done.append((calls[part.tool_use_id], part))
        return tuple(done)

    @property
    def gist(self) -> str:
        """The last message in one line, for an error message."""
        last = self.messages[-1]
        return f"{last.role}: {', '.join(str(block)[:80] for block in last.content)}"

    def _newest_question(self) -> tuple[int, int] | None:
        for index in range(len(self.messages) - 1, -1, -1):
            message = self.messages[index]
            if message.role != "user":
                continue
            for offset in range(len(message.content) - 1, -1, -1):
                if isinstance(message.content[offset], Text):
                    return index, offset
        return None
