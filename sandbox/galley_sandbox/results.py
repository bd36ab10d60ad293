"""What a hand answers, read as bounded, untrusted input."""

import base64
import binascii
import json
from collections.abc import Collection
from typing import Literal

from galley_sandbox.errors import HandMisbehaved
from galley_sandbox.port import (
    Acknowledged,
    Block,
    CallState,
    Finished,
    MediaBlock,
    Running,
    TextBlock,
    ToolResult,
    Unknown,
)

MAX_RESULT = 40 * 1024 * 1024
_MAX_TEXT = 150_000
_MAX_BLOCKS = 16
_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


def parse_result(raw: bytes) -> ToolResult:
    """The result in `raw`. Raises HandMisbehaved if it is none."""
    value = _object(raw)
    content, is_error = value.get("content"), value.get("is_error")
    if not isinstance(content, list) or not isinstance(is_error, bool) or len(content) > _MAX_BLOCKS:
        raise HandMisbehaved("The hand answered with something that is no tool result.")
    return ToolResult(content=tuple(_block(item) for item in content), is_error=is_error)


def parse_state(raw: bytes) -> CallState:
    """The answer to a query: a line of JSON, behind it the kept result."""
    first, _, rest = raw.partition(b"\n")
    match _object(first).get("state"):
        case "running":
            return Running()
        case "finished":
            return Finished(parse_result(rest))
        case "acknowledged":
            return Acknowledged()
        case "unknown":
            return Unknown()
        case _:
            raise HandMisbehaved("The hand answered a query with a state that does not exist.")


def parse_incarnation(raw: bytes) -> str:
    incarnation = _object(raw[:4096]).get("incarnation")
    if not isinstance(incarnation, str):
        raise HandMisbehaved("The hand did not say which one it is.")
    return incarnation


def parse_ports(raw: bytes, doors: Collection[str]) -> dict[str, int]:
    found = _object(raw[:4096])
    ports = {name: port for name, port in found.items() if isinstance(port, int) and 0 < port < 65536}
    if ports.keys() != set(doors):
        raise HandMisbehaved("The hand did not say on which ports it listens.")
    return ports


def parse_door(meta: bytes) -> str | None:
    """Which door a channel that the hand opened is for. None: it is for something else, or nonsense."""
    try:
        value = _object(meta)
    except HandMisbehaved:
        return None
    door = value.get("door")
    return door if value.get("op") == "tunnel" and isinstance(door, str) else None


def _object(raw: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise HandMisbehaved("The hand answered with something that is not JSON.") from e
    if not isinstance(value, dict):
        raise HandMisbehaved("The hand answered with something that is no JSON object.")
    return value


def _block(item: object) -> Block:
    match item:
        case {"type": "text", "text": str(text)} if 0 < len(text) <= _MAX_TEXT:
            # JSON lets half a surrogate pair through, and no encoder after us takes it.
            return TextBlock(text.encode("utf-8", "replace").decode())
        case {"type": "image", "source": {"type": "base64", "media_type": str(media_type), "data": str(data)}} if (
            media_type in _IMAGES
        ):
            return _media("image", media_type, data)
        case {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": str(data)}}:
            return _media("document", "application/pdf", data)
        case _:
            raise HandMisbehaved("The hand answered with a content block that is none of ours.")


def _media(kind: Literal["image", "document"], media_type: str, data: str) -> MediaBlock:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as e:
        raise HandMisbehaved(f"The hand answered with {kind} data that is not base64.") from e
    return MediaBlock(kind=kind, media_type=media_type, data=data)
