"""A session's client over plain sockets: a library in this process would cost as much as what is measured."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

from bench._server import KEY, Served


class Wire:
    """One connection to send on, and one with the session's open event stream."""

    def __init__(self, path: str, line: tuple[StreamReader, StreamWriter], stream: StreamReader) -> None:
        self._path = path
        self._reader, self._writer = line
        self._stream = stream

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Served, session_id: str) -> AsyncIterator[Self]:
        url = urlsplit(server.url)
        path = f"/v1/sessions/{session_id}/events"
        line = await asyncio.open_connection(url.hostname, url.port)
        stream, listening = await asyncio.open_connection(url.hostname, url.port)
        try:
            listening.write(_head("GET", f"{path}/stream?event_deltas[]=agent.message") + b"\r\n")
            await _answered(stream)
            yield cls(path, line, stream)
        finally:
            line[1].close()
            listening.close()

    async def say(self, text: str) -> None:
        message = {"type": "user.message", "content": [{"type": "text", "text": text}]}
        body = json.dumps({"events": [message]}).encode()
        self._writer.write(_head("POST", self._path) + b"content-length: %d\r\n\r\n" % len(body) + body)
        await self._reader.readexactly(await _answered(self._reader))

    async def hear(self, *words: bytes) -> None:
        """Read the stream up to the next frame of one of these events."""
        wanted = [b"event: %s\n" % word for word in words]
        longest = max(len(word) for word in wanted)
        seen = b""
        while not any(word in seen for word in wanted):
            data = await self._stream.read(65_536)
            if not data:
                raise RuntimeError("the stream ended")
            seen = seen[-longest:] + data


def _head(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n".encode()


async def _answered(reader: StreamReader) -> int:
    """The length of the body of an answer, which must be a good one."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"the server answered {head[:60]!r}")
    _, found, rest = head.partition(b"content-length: ")
    return int(rest.partition(b"\r")[0]) if found else 0
