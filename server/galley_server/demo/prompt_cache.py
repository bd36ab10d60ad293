"""A prompt cache as the official API charges for it: by the hash of the real prefix at each breakpoint. No I/O here.

A prefix is tools, then system, then messages. A breakpoint writes the prefix that ends at it, and reads the longest
prefix written before that ends at it or up to twenty blocks earlier. Tokens are counted as a quarter of the bytes.
One departure: the official API caches nothing shorter than about a thousand tokens; here that floor is a parameter, 0
by default, because the transcripts of tests are short.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from galley_server.demo.dialogue import ttl_of
from galley_server.demo.reply import Usage
from galley_server.demo.transcript import JSON

_LOOKBACK: Final = 20
_CAPACITY: Final = 100_000
_SECONDS: Final = {"5m": 300.0, "1h": 3600.0}


@dataclass(frozen=True, slots=True)
class _Step:
    """One block of the prefix: its own tokens, the hash of everything up to it, and the breakpoint on it."""

    tokens: int
    prefix: bytes
    ttl: str | None


class PromptCache:
    def __init__(self, *, minimum_tokens: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._minimum = minimum_tokens
        self._clock = clock
        self._written: dict[bytes, tuple[float, str]] = {}

    def charge(self, body: Mapping[str, JSON], *, output_tokens: int) -> Usage:
        """Read and write the cache for one answered request."""
        steps = list(_steps(body))
        marks = self._marks(steps)
        if not marks:
            return Usage(sum(step.tokens for step in steps), output_tokens)
        hit = self._longest_hit(steps, marks)
        created = {"5m": 0, "1h": 0}
        begin = hit + 1
        for mark in marks:
            if mark > hit:
                ttl = steps[mark].ttl or "5m"
                created[ttl] += sum(step.tokens for step in steps[begin : mark + 1])
                begin = mark + 1
                self._write(steps[mark].prefix, ttl)
        return Usage(
            input_tokens=sum(step.tokens for step in steps[begin:]),
            output_tokens=output_tokens,
            cache_read=sum(step.tokens for step in steps[: hit + 1]),
            cache_creation_5m=created["5m"],
            cache_creation_1h=created["1h"],
        )

    def _marks(self, steps: list[_Step]) -> list[int]:
        marks: list[int] = []
        total = 0
        for index, step in enumerate(steps):
            total += step.tokens
            if step.ttl is not None and total >= self._minimum:
                marks.append(index)
        return marks

    def _longest_hit(self, steps: list[_Step], marks: list[int]) -> int:
        now = self._clock()
        for mark in reversed(marks):
            for index in range(mark, max(mark - _LOOKBACK, -1), -1):
                entry = self._written.get(steps[index].prefix)
                if entry is not None and entry[0] > now:
                    self._write(steps[index].prefix, entry[1])
                    return index
        return -1

    def _write(self, prefix: bytes, ttl: str) -> None:
        # Re-inserted at the end, so that the first key is always the one written or read longest ago.
        self._written.pop(prefix, None)
        self._written[prefix] = (self._clock() + _SECONDS[ttl], ttl)
        if len(self._written) > _CAPACITY:
            del self._written[next(iter(self._written))]


def count_tokens(body: Mapping[str, JSON]) -> int:
    return sum(step.tokens for step in _steps(body))


def tokens(text: str) -> int:
    return (len(text) + 3) // 4


def _steps(body: Mapping[str, JSON]) -> Iterator[_Step]:
    running = blake2b(str(body.get("model")).encode(), digest_size=16)
    cached = _has_breakpoint(body)
    automatic = ttl_of(body)
    pending: _Step | None = None
    for salt, block in _levels(body):
        if pending is not None:
            yield pending
        data = salt + _bare(block)
        if cached:
            running.update(data)
        pending = _Step((len(data) + 3) // 4, running.digest() if cached else b"", _ttl(block))
    if pending is not None:
        yield _Step(pending.tokens, pending.prefix, pending.ttl or automatic)


def _levels(body: Mapping[str, JSON]) -> Iterator[tuple[bytes, JSON]]:
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        yield b"tool ", tool
    system = body.get("system")
    if isinstance(system, str) and system:
        yield b"system ", {"type": "text", "text": system}
    for block in system if isinstance(system, list) else ():
        yield b"system ", block
    # Changing how tools are chosen or how much is thought invalidates the messages, not what comes before them.
    settings = json.dumps([body.get("tool_choice"), body.get("thinking")]).encode()
    messages = body.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        salt = str(message.get("role")).encode() + b" " + (settings if index == 0 else b"")
        content = message.get("content")
        blocks: list[JSON] = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for block in blocks:
            yield salt, block


def _has_breakpoint(body: Mapping[str, JSON]) -> bool:
    return ttl_of(body) is not None or any(_ttl(block) for _, block in _levels(body))


def _ttl(block: JSON) -> str | None:
    if not isinstance(block, dict):
        return None
    inner = block.get("content") if block.get("type") == "tool_result" else None
    nested = (
        next((ttl_of(part) for part in inner if isinstance(part, dict) and ttl_of(part)), None)
        if isinstance(inner, list)
        else None
    )
    return ttl_of(block) or nested


def _bare(block: JSON) -> bytes:
    """The block without its breakpoint: where a breakpoint stands is no part of the prefix."""
    if isinstance(block, dict):
        inner = block.get("content")
        if isinstance(inner, list) and any(isinstance(part, dict) and "cache_control" in part for part in inner):
            block = {**block, "content": [_without_breakpoint(part) for part in inner]}
        block = _without_breakpoint(block)
    return json.dumps(block, separators=(",", ":")).encode()


def _without_breakpoint(block: JSON) -> JSON:
    if isinstance(block, dict) and "cache_control" in block:
        return {name: value for name, value in block.items() if name != "cache_control"}
    return block
