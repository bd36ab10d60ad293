"""Forwards connections to Unix sockets: the tunnel between a container that has no network and the vault proxy.

    forward.py --greeting FILE /run/sandbox/mcp.sock=/run/proxy/proxy.sock /run/sandbox/egress.sock=...   # outside
    forward.py 8430=/run/sandbox/mcp.sock 8431=/run/sandbox/egress.sock -- COMMAND...                     # inside

Outside, it writes the greeting before the first byte of each connection, so that the proxy knows through which tunnel
that came. Inside it needs no secret: it listens on the container's own loopback, for programs that cannot speak to
Unix sockets, runs the command and ends with its status. Standard library only, Python 3.11 or newer.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_READ = 256 * 1024
_MOST = 256


@dataclass(frozen=True)
class Way:
    """From a port of the loopback, or a path, to the path of a Unix socket."""

    listen: int | Path
    target: Path


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class Forwarder:
    def __init__(self, greeting: Path | None) -> None:
        self._greeting = greeting
        self._open = 0

    async def listen(self, way: Way) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(reader, writer, way.target)

        if isinstance(way.listen, int):
            return await asyncio.start_server(serve, "127.0.0.1", way.listen)
        way.listen.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(serve, way.listen)
        # The folder is one sandbox's, whose user is not ours.
        way.listen.chmod(0o666)
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Path) -> None:
        if self._open >= _MOST:
            writer.transport.abort()
            return
        self._open += 1
        try:
            await self._join(reader, writer, target)
        except* OSError:
            pass  # one of the two is gone, and takes the other along
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Path) -> None:
        there, out = await asyncio.open_unix_connection(target)
        try:
            if self._greeting is not None:
                # Read anew for each connection: it is another one after the service key was changed.
                out.write(self._greeting.read_bytes())
            async with asyncio.TaskGroup() as both:
                both.create_task(carry(reader, out))
                both.create_task(carry(there, writer))
            writer.close()
            await writer.wait_closed()
        finally:
            out.transport.abort()


async def run(ways: Sequence[Way], greeting: Path | None, command: Sequence[str]) -> int:
    """Until the command ends, or a signal comes. Connections that are open then are not waited for."""
    forwarder = Forwarder(greeting)
    servers = [await forwarder.listen(way) for way in ways]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        if command:
            return await attend(command, stop)
        await stop.wait()
        return 0
    finally:
        for server in servers:
            server.close()


async def attend(command: Sequence[str], stop: asyncio.Event) -> int:
    child = await asyncio.create_subprocess_exec(*command)
    async with asyncio.TaskGroup() as tasks:
        ended, stopped = tasks.create_task(child.wait()), tasks.create_task(stop.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not ended.done():
            child.terminate()
    status = ended.result()
    # The shell's way of saying by which signal it ended.
    return status if status >= 0 else 128 - status


def way(text: str) -> Way:
    listen, equals, target = text.partition("=")
    if not equals or not target.startswith("/") or not (listen.isdigit() or listen.startswith("/")):
        raise argparse.ArgumentTypeError(f"{text!r}: use PORT=/path/of.sock or /path/of.sock=/path/of.sock")
    return Way(int(listen) if listen.isdigit() else Path(listen), Path(target))


def main(words: Sequence[str]) -> int:
    # What comes after -- is the command's own; argparse would take its options for ours.
    own, command = list(words), list[str]()
    if "--" in own:
        own, command = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(usage="forward.py [--greeting FILE] FROM=TO... [-- COMMAND...]")
    parser.add_argument("ways", metavar="FROM=TO", nargs="+", type=way)
    parser.add_argument("--greeting", metavar="FILE", type=Path, help="what each connection begins with")
    asked = parser.parse_args(own)
    return asyncio.run(run(asked.ways, asked.greeting, command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
