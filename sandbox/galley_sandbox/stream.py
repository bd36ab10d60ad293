"""The byte stream to a hand, whatever carries it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

_READ = 256 * 1024


class Stream(Protocol):
    """Ordered bytes both ways. Both methods raise OSError when the other end is gone."""

    async def read(self) -> bytes:
        """Some bytes, or none at the end of the stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more."""
        ...


class SocketStream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(_READ)

    async def write(self, data: bytes) -> None:
        await send(self._writer, data)


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write to a connection that may have broken since: asyncio says so with OSError, uvloop with RuntimeError."""
    if writer.transport.is_closing():
        raise ConnectionResetError("the connection is closed")
    writer.write(data)
    await writer.drain()


@asynccontextmanager
async def open_unix_stream(path: str) -> AsyncIterator[SocketStream]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield SocketStream(reader, writer)
    finally:
        # Nothing waits for a last flush: a hand that does not read must not hold us up.
        writer.transport.abort()
