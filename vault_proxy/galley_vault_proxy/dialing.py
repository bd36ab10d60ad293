"""Connections for the HTTP client straight on asyncio's own streams.

The client's own backend goes through a second layer of timeouts and checkpoints for every read and write, and sends a
request's head and body by themselves. Here small writes of one turn of the loop leave together.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore2

_HIGH_WATER: Final = 1 << 18
_SMALL: Final = 1 << 15


class AsyncioStream(httpcore2.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._gathered: list[bytes] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError:
            raise httpcore2.ReadTimeout from None
        except (OSError, ValueError) as error:
            raise httpcore2.ReadError(str(error)) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._flush)
        self._gathered.append(buffer)
        if len(buffer) < _SMALL and self._writer.transport.get_write_buffer_size() < _HIGH_WATER:
            return
        self._flush()
        try:
            async with asyncio.timeout(timeout):
                await self._writer.drain()
        except TimeoutError:
            raise httpcore2.WriteTimeout from None
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from None

    def _flush(self) -> None:
        """A connection that is lost meanwhile says so at the next read."""
        if self._gathered:
            whole = b"".join(self._gathered)
            self._gathered.clear()
            self._writer.write(whole)

    async def aclose(self) -> None:
        self._flush()
        # Not waited for: the other side may never say good-bye.
        self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError:
            self._writer.close()
            raise httpcore2.ConnectTimeout from None
        except (OSError, ssl.SSLError) as error:
            self._writer.close()
            raise httpcore2.ConnectError(str(error)) from None
        return self

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._writer.get_extra_info("ssl_object")
            case "client_addr":
                return self._writer.get_extra_info("sockname")
            case "server_addr":
                return self._writer.get_extra_info("peername")
            case "socket":
                return self._writer.get_extra_info("socket")
            case "is_readable":
                # Said of an idle connection: what comes now is an end, or nothing that was asked for.
                return self._reader.at_eof() or bool(self._reader._buffer) or self._writer.is_closing()  # type: ignore[attr-defined]
            case _:
                return None


class AsyncioBackend(httpcore2.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_connection(host, port, limit=_HIGH_WATER)
        except TimeoutError:
            raise httpcore2.ConnectTimeout from None
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from None
        connected = writer.get_extra_info("socket")
        for option in socket_options or ():
            connected.setsockopt(*option)
        return AsyncioStream(reader, writer)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("a Unix socket is not the outside")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
