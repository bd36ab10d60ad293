"""Outcomes: what a sandbox answered, bounded once more on this side, and the words for what went wrong.

The hand lives in hostile territory, so nothing it says is taken as it is: kinds of block, media types, base64, sizes
and Unicode are all checked here, whatever the hand promised to have checked.
"""

import binascii
from collections.abc import Sequence
from typing import Final

from galley_sandbox.port import Block, MediaBlock, ToolResult
from galley_sandbox.port import TextBlock as SandboxText

from galley_server.hands.port import ToolOutcome
from galley_server.wire.content import Base64Source, DocumentBlock, ImageBlock, ResultBlock, TextBlock

MAX_CHARACTERS: Final = 100_000
MAX_BLOCKS: Final = 16
MAX_IMAGE_BASE64: Final = 5 * 1024 * 1024
MAX_PDF_BASE64: Final = 20 * 1024 * 1024 * 4 // 3 + 4

_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_PDF: Final = "application/pdf"


def from_sandbox(result: ToolResult) -> ToolOutcome:
    """Turn a hand's answer into an outcome that the log may keep and the Messages API accepts.

    Blank text is dropped (the API refuses it), and an error that says nothing is given words (it refuses that too).
    """
    content, left = _within(result.content)
    if left:
        content.append(TextBlock(text=f"[{left}]"))
    if result.is_error and not content:
        content.append(TextBlock(text="The tool failed without any output."))
    return ToolOutcome(tuple(content), is_error=result.is_error)


def failed(text: str) -> ToolOutcome:
    return ToolOutcome((TextBlock(text=text),), is_error=True)


def interrupted(reason: str) -> ToolOutcome:
    """The call reached the sandbox, or may have, and nobody will ever know how it ended."""
    return failed(f"interrupted, may have run: {reason}")


def not_run(reason: str) -> ToolOutcome:
    """The call certainly never reached the sandbox."""
    return failed(f"interrupted, did not run: {reason}")


def with_notes(outcome: ToolOutcome, notes: Sequence[str]) -> ToolOutcome:
    """Put what the model should know about its sandbox before what the tool said."""
    if not notes:
        return outcome
    return ToolOutcome((TextBlock(text="\n".join(f"[{note}]" for note in notes)), *outcome.content), outcome.is_error)


def _within(blocks: Sequence[Block]) -> tuple[list[ResultBlock], str]:
    """The blocks that may pass, and what to say about the rest."""
    content: list[ResultBlock] = []
    room = MAX_CHARACTERS
    left: list[str] = []
    for block in blocks[:MAX_BLOCKS]:
        match block:
            case SandboxText(text=text):
                if len(text) > room:
                    left.append(f"output truncated: {len(text)} characters, the limit is {MAX_CHARACTERS}")
                    text = text[:room]
                room -= len(text)
                if text.strip():
                    content.append(TextBlock(text=_unicode(text)))
            case MediaBlock():
                media = _media(block)
                if isinstance(media, str):
                    left.append(media)
                else:
                    content.append(media)
    if len(blocks) > MAX_BLOCKS:
        left.append(f"{len(blocks) - MAX_BLOCKS} more blocks left out, the limit is {MAX_BLOCKS}")
    return content, "; ".join(left)


def _media(block: MediaBlock) -> ImageBlock | DocumentBlock | str:
    image = block.kind == "image" and block.media_type in _IMAGES
    if not image and not (block.kind == "document" and block.media_type == _PDF):
        return f"left out {_a(block)} of a type that cannot be shown"
    if len(block.data) > (MAX_IMAGE_BASE64 if image else MAX_PDF_BASE64):
        return f"left out {_a(block)} that is too large to be shown"
    try:
        binascii.a2b_base64(block.data, strict_mode=True)
    except ValueError:  # binascii.Error, or a character outside ASCII
        return f"left out {_a(block)} that is not valid base64"
    source = Base64Source(media_type=block.media_type, data=block.data)
    return ImageBlock(source=source) if image else DocumentBlock(source=source)


def _unicode(text: str) -> str:
    """JSON can smuggle in half a surrogate pair, which no UTF-8 encoder downstream would take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _a(block: MediaBlock) -> str:
    return "an image" if block.kind == "image" else "a document"
