"""Server-sent events as bytes. No I/O here.

Every frame has an `event:` line, because the official SDKs drop frames without one; only what can be resumed from has
an `id:` line. Bodies are canonical JSON, which has no line break, so they pass as they are.
"""

from typing import Final

# Comments: every client skips them, so they can be mistaken for no event.
OPENING: Final = b": open\n\n"
HEARTBEAT: Final = b": still here\n\n"


def frame(event: str, data: bytes, *, cursor: str | None = None) -> bytes:
    if cursor is None:
        return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    return b"event: %b\nid: %b\ndata: %b\n\n" % (event.encode(), cursor.encode(), data)
