"""The rules between the messages of a request, in the words of the official API. No I/O here.

Every `tool_use` is answered once, at once and first; text is never empty; thinking comes back as it was signed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from galley_server.demo import signature
from galley_server.demo.transcript import (
    JSON,
    Message,
    RedactedThinking,
    Request,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
)
from galley_server.errors import InvalidRequest

_MAX_BREAKPOINTS: Final = 4


def check(request: Request, *, prefill: bool = False) -> None:
    """Raise what the official API answers to this dialogue; `prefill` admits an assistant message at the end."""
    messages = request.messages
    if messages[0].role != "user":
        raise InvalidRequest('messages: first message must use the "user" role')
    _check_texts(messages)
    _check_places(messages)
    _check_pairs(merge(messages))
    _check_thinking(messages)
    if request.thinking:
        _check_kept_thinking(messages)
    _check_end(messages, prefill=prefill)
    _check_breakpoints(request.body)


def merge(messages: Sequence[Message]) -> list[tuple[int, Message]]:
    """Join neighbours of one role, as the API does, each with the index of its first message."""
    joined: list[tuple[int, Message]] = []
    for index, message in enumerate(messages):
        if joined and joined[-1][1].role == message.role:
            first, before = joined[-1]
            joined[-1] = (first, Message(message.role, before.content + message.content))
        else:
            joined.append((index, message))
    return joined


def _check_texts(messages: Sequence[Message]) -> None:
    last = len(messages) - 1
    for index, message in enumerate(messages):
        if not message.content and not (index == last and message.role == "assistant"):
            raise InvalidRequest(
                f"messages.{index}: all messages must have non-empty content except for the optional final "
                "assistant message"
            )
        for block in message.content:
            if isinstance(block, Text) and not block.text:
                raise InvalidRequest("messages: text content blocks must be non-empty")
            if isinstance(block, Text) and block.text.isspace():
                raise InvalidRequest("messages: text content blocks must contain non-whitespace text")


def _check_places(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        for at, block in enumerate(message.content):
            if isinstance(block, ToolResult) and message.role != "user":
                raise InvalidRequest(f"messages.{index}: `tool_result` blocks can only be in `user` messages")
            if isinstance(block, ToolUse) and message.role != "assistant":
                raise InvalidRequest(f"messages.{index}: `tool_use` blocks can only be in `assistant` messages")
            if isinstance(block, Thinking | RedactedThinking) and message.role != "assistant":
                raise InvalidRequest(
                    f"messages.{index}.content.{at}: `thinking` blocks can only be in `assistant` messages"
                )


def _check_pairs(merged: Sequence[tuple[int, Message]]) -> None:
    seen: set[str] = set()
    asked: list[str] = []
    for position, (index, message) in enumerate(merged):
        _check_results(index, message, asked)
        asked = []
        for at, block in enumerate(message.content):
            if isinstance(block, ToolUse):
                if block.id in seen:
                    raise InvalidRequest(f"messages.{index}.content.{at}: `tool_use` ids must be unique")
                seen.add(block.id)
                asked.append(block.id)
        following = merged[position + 1][1] if position + 1 < len(merged) else None
        answered = _leading_results(following)
        if missing := [identity for identity in asked if identity not in answered]:
            raise InvalidRequest(
                f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
                "next message."
            )


def _check_results(index: int, message: Message, asked: Sequence[str]) -> None:
    found: set[str] = set()
    for at, block in enumerate(message.content):
        if not isinstance(block, ToolResult):
            continue
        identity = block.tool_use_id
        if identity not in asked:
            raise InvalidRequest(
                f"messages.{index}.content.{at}: unexpected `tool_use_id` found in `tool_result` blocks: {identity}. "
                "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        if identity in found:
            raise InvalidRequest(
                f"messages.{index}.content.{at}: each tool_use must have a single result. Found multiple "
                f"`tool_result` blocks with id: {identity}"
            )
        found.add(identity)


def _leading_results(message: Message | None) -> set[str]:
    """Results that come before anything else: one after a text does not count as an answer."""
    results: set[str] = set()
    for block in message.content if message is not None and message.role == "user" else ():
        if not isinstance(block, ToolResult):
            break
        results.add(block.tool_use_id)
    return results


def _check_thinking(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        for at, block in enumerate(message.content):
            if isinstance(block, Thinking) and not signature.signed(block):
                raise InvalidRequest(f"messages.{index}.content.{at}: Invalid `signature` in `thinking` block")
            if isinstance(block, RedactedThinking) and not signature.issued(block):
                raise InvalidRequest(f"messages.{index}.content.{at}: Invalid `data` in `redacted_thinking` block")


def _check_kept_thinking(messages: Sequence[Message]) -> None:
    """A tool call whose id says that thinking came before it must come back with that thinking."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role != "assistant":
            continue
        calls = [block for block in message.content if isinstance(block, ToolUse)]
        first = message.content[0] if message.content else None
        if calls and signature.thought(calls[0].id) and not isinstance(first, Thinking | RedactedThinking):
            found = "text" if isinstance(first, Text) else "tool_use"
            raise InvalidRequest(
                f"messages.{index}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{found}`. "
                "When `thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding "
                "the lastmost set of `tool_use` and `tool_result` blocks)."
            )
        return


def _check_end(messages: Sequence[Message], *, prefill: bool) -> None:
    final = messages[-1]
    if final.role != "assistant":
        return
    last = final.content[-1] if final.content else None
    if isinstance(last, Text) and last.text != last.text.rstrip():
        raise InvalidRequest("messages: final assistant content cannot end with trailing whitespace")
    if isinstance(last, Thinking | RedactedThinking):
        raise InvalidRequest("messages: final assistant content cannot end with a thinking block")
    if not prefill:
        raise InvalidRequest(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )


def _check_breakpoints(body: Mapping[str, JSON]) -> None:
    found = list(breakpoints(body))
    if len(found) > _MAX_BREAKPOINTS:
        raise InvalidRequest(
            f"A maximum of {_MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(found)}."
        )
    short = False
    for path, ttl in found:
        if ttl == "1h" and short:
            raise InvalidRequest(
                f"{path}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
                "cache_control block. Note that blocks are processed in the following order: `tools`, `system`, "
                "`messages`."
            )
        short = short or ttl == "5m"


def breakpoints(body: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    """Yield (path, ttl) of every cache breakpoint in processing order."""
    for path, block in _blocks(body):
        if ttl := ttl_of(block):
            if block.get("type") == "text" and not block.get("text"):
                raise InvalidRequest(f"{path}.text: cache_control cannot be set for empty text blocks")
            yield path, ttl
        inner = block.get("content") if block.get("type") == "tool_result" else None
        if isinstance(inner, list):
            for at, part in enumerate(inner):
                if isinstance(part, dict) and (ttl := ttl_of(part)):
                    yield f"{path}.content.{at}", ttl
    if ttl := ttl_of(body):
        yield "", ttl


def ttl_of(block: Mapping[str, JSON]) -> str | None:
    control = block.get("cache_control")
    return str(control.get("ttl", "5m")) if isinstance(control, dict) else None


def _blocks(body: Mapping[str, JSON]) -> Iterator[tuple[str, dict[str, JSON]]]:
    for level in ("tools", "system"):
        if isinstance(blocks := body.get(level), list):
            yield from ((f"{level}.{at}", block) for at, block in enumerate(blocks) if isinstance(block, dict))
    messages = body.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            yield from (
                (f"messages.{index}.content.{at}", block) for at, block in enumerate(content) if isinstance(block, dict)
            )
