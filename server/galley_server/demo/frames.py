"""A reply as the bytes of the wire: server-sent events, or one JSON message. No I/O here.

The events are built by hand from the few strings that vary: benches run hundreds of streams a second against this.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from galley_server.demo import signature
from galley_server.demo.prompt_cache import tokens
from galley_server.demo.reply import Pace, Place, Reply, Said, StopReason, Usage
from galley_server.demo.transcript import JSON, RedactedThinking, Text, Thinking, ToolUse
from galley_server.ids import new_id

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTA: Final = b"event: content_block_delta\n"
_CALLER: Final[dict[str, JSON]] = {"type": "direct"}


@dataclass(frozen=True, slots=True)
class Composed:
    """A reply with everything the server adds: ids, signatures, usage, stop reason."""

    id: str
    model: str
    content: tuple[Said, ...]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: Usage


def compose(reply: Reply, *, model: str, usage: Usage) -> Composed:
    content: list[Said] = []
    thought = False
    for block in reply.content:
        match block:
            case Thinking():
                thought = True
                content.append(Thinking(block.thinking, signature.sign(block.thinking)))
            case RedactedThinking():
                thought = True
                content.append(RedactedThinking(signature.redacted()))
            case ToolUse(id=""):
                content.append(ToolUse(block.name, block.input, signature.tool_use_id(thought=thought)))
            case _:
                content.append(block)
    called = any(isinstance(block, ToolUse) for block in content)
    return Composed(
        id=new_id("msg"),
        model=model,
        content=tuple(content),
        stop_reason=reply.stop_reason or ("tool_use" if called else "end_turn"),
        stop_sequence=reply.stop_sequence,
        usage=reply.usage or usage,
    )


def output_tokens(reply: Reply) -> int:
    total = 0
    for block in reply.content:
        match block:
            case Text():
                total += tokens(block.text)
            case Thinking():
                total += tokens(block.thinking)
            case ToolUse():
                total += tokens(_dump(dict(block.input))) + 8
            case RedactedThinking():
                total += 16
            case _:
                assert_never(block)
    return max(total, 1)


def message(composed: Composed) -> bytes:
    return _dump(
        {
            **_envelope(composed),
            "content": [_whole(block) for block in composed.content],
            "stop_reason": composed.stop_reason,
            "stop_sequence": composed.stop_sequence,
            "usage": _usage(composed.usage, composed.usage.output_tokens),
        }
    ).encode()


def events(composed: Composed, pace: Pace) -> list[bytes]:
    start: dict[str, JSON] = {
        "type": "message_start",
        "message": {
            **_envelope(composed),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(composed.usage, 1),
        },
    }
    frames = [_event("message_start", start)]
    for index, block in enumerate(composed.content):
        frames.extend(_block_events(index, block, pace))
        if index == 0:
            frames.insert(2, PING)
    if not composed.content:
        frames.append(PING)
    usage = composed.usage
    end: dict[str, JSON] = {
        "type": "message_delta",
        "delta": {
            "stop_reason": composed.stop_reason,
            "stop_sequence": composed.stop_sequence,
            "stop_details": _stop_details(composed.stop_reason),
        },
        "usage": {
            "input_tokens": usage.input_tokens,
            "cache_creation_input_tokens": usage.cache_creation_5m + usage.cache_creation_1h,
            "cache_read_input_tokens": usage.cache_read,
            "output_tokens": usage.output_tokens,
        },
    }
    frames.append(_event("message_delta", end))
    frames.append(MESSAGE_STOP)
    return frames


def is_delta(frame: bytes) -> bool:
    return frame.startswith(_DELTA)


def position(place: Place, composed: Composed, frames: list[bytes]) -> int:
    """How many events come before the place: the half of the named block's deltas, or the number itself."""
    if isinstance(place, int):
        return min(place, len(frames))
    kinds = {"text": Text, "thinking": Thinking, "tool_use": ToolUse}
    index = next((at for at, block in enumerate(composed.content) if isinstance(block, kinds[place])), None)
    if index is None:
        raise ValueError(f"the reply has no {place} block for a fault to happen in")
    mine = _DELTA + b'data: {"type":"content_block_delta","index":%d,' % index
    deltas = [at for at, frame in enumerate(frames) if frame.startswith(mine)]
    return deltas[(len(deltas) + 1) // 2 - 1] + 1 if deltas else len(frames)


def error_event(kind: str, text: str, request_id: str) -> bytes:
    return _event("error", error_body(kind, text, request_id))


def error_body(kind: str, text: str, request_id: str) -> dict[str, JSON]:
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": request_id}


def _block_events(index: int, block: Said, pace: Pace) -> Iterator[bytes]:
    opening = _dump(_opening(block))
    yield (
        f'event: content_block_start\ndata: {{"type":"content_block_start","index":{index},'
        f'"content_block":{opening}}}\n\n'
    ).encode()
    head = f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{index},"delta":{{"type":'
    chunk = (isinstance(block, ToolUse) and pace.input_chunk_chars) or pace.chunk_chars
    for kind, field, piece in _deltas(block, max(chunk, 1)):
        yield f'{head}"{kind}","{field}":{json.dumps(piece)}}}}}\n\n'.encode()
    yield b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index


def _deltas(block: Said, chunk: int) -> Iterator[tuple[str, str, str]]:
    match block:
        case Text(text=text):
            for piece in _pieces(text, chunk):
                yield "text_delta", "text", piece
        case Thinking(thinking=thinking, signature=signed):
            for piece in _pieces(thinking, chunk):
                yield "thinking_delta", "thinking", piece
            yield "signature_delta", "signature", signed
        case ToolUse(input=arguments):
            yield "input_json_delta", "partial_json", ""
            # No arguments stream as no JSON at all: a client must not parse the empty string.
            for piece in _pieces(json.dumps(dict(arguments)), chunk) if arguments else ():
                yield "input_json_delta", "partial_json", piece
        case RedactedThinking():
            return
        case _:
            assert_never(block)


def _pieces(text: str, chunk: int) -> Iterator[str]:
    for start in range(0, len(text), chunk):
        yield text[start : start + chunk]


def _opening(block: Said) -> dict[str, JSON]:
    match block:
        case Text():
            return {"type": "text", "text": ""}
        case Thinking():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case RedactedThinking(data=data):
            return {"type": "redacted_thinking", "data": data}
        case ToolUse(name=name, id=identity):
            return {"type": "tool_use", "id": identity, "name": name, "input": {}, "caller": _CALLER}
        case _:
            assert_never(block)


def _whole(block: Said) -> dict[str, JSON]:
    match block:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Thinking(thinking=thinking, signature=signed):
            return {"type": "thinking", "thinking": thinking, "signature": signed}
        case ToolUse(input=arguments):
            return {**_opening(block), "input": dict(arguments)}
        case RedactedThinking():
            return _opening(block)
        case _:
            assert_never(block)


def _envelope(composed: Composed) -> dict[str, JSON]:
    return {
        "model": composed.model,
        "id": composed.id,
        "type": "message",
        "role": "assistant",
        "stop_details": None if composed.stop_reason != "refusal" else _stop_details("refusal"),
    }


def _stop_details(reason: StopReason) -> JSON:
    if reason != "refusal":
        return None
    return {"type": "refusal", "category": None, "explanation": "The script refuses this request."}


def _usage(usage: Usage, output: int) -> dict[str, JSON]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_5m + usage.cache_creation_1h,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_creation_5m,
            "ephemeral_1h_input_tokens": usage.cache_creation_1h,
        },
        "output_tokens": output,
        "service_tier": "standard",
    }


def _event(name: str, data: dict[str, JSON]) -> bytes:
    return f"event: {name}\ndata: {_dump(data)}\n\n".encode()


def _dump(value: JSON) -> str:
    return json.dumps(value, separators=(",", ":"))
