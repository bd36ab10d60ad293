"""Putting a session's files into its sandbox."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

from galley_sandbox.errors import FileRefused
from galley_sandbox.port import UPLOADS, Hand

from galley_server.errors import RequestError
from galley_server.hands.line import Line, answer_within
from galley_server.hands.port import FileSource, Mount

FILE_S: Final = 30.0
"""How long a file's way into the sandbox may stand still."""


async def put_missing(line: Line, mounts: Sequence[Mount], files: FileSource, tell: Callable[[str], None]) -> None:
    """Put in place what is not. A file that cannot be put is told of, and stops nothing. Raises SandboxLost."""
    mounted = line.held.mounted
    for mount in mounts:
        if mount in mounted:
            continue
        # What survived a restart got its files before its first call, and they may have been edited since.
        there = line.held.placed.survived and await _exists(line.hand, mount.path)
        reason = None if there else await _put(line.hand, mount, files)
        if reason is not None:
            tell(f"The file {mount.path} could not be put into the sandbox: {reason}")
        mounted.add(mount)


async def _put(hand: Hand, mount: Mount, files: FileSource) -> str | None:
    """Put one file. Returns why it could not be, if it could not."""
    mode = 0o444 if mount.path.startswith(UPLOADS + "/") else 0o644
    try:
        async with answer_within(FILE_S) as patience, aclosing(_content(mount.file_id, files, patience)) as content:
            await hand.put_file(mount.path, content, mode=mode)
    except FileRefused as refusal:
        return f"{refusal.reason}."
    except RequestError as error:
        return error.message
    return None


async def _content(file_id: str, files: FileSource, patience: asyncio.Timeout) -> AsyncGenerator[bytes, None]:
    """The file, piece by piece; each piece that is taken buys time for the next."""
    async with _closed(files.content(file_id)) as pieces:
        async for piece in pieces:
            patience.reschedule(asyncio.get_running_loop().time() + FILE_S)
            yield piece


async def _exists(hand: Hand, path: str) -> bool:
    try:
        async with answer_within(FILE_S), _closed(hand.get_file(path)) as pieces:
            _ = await anext(pieces, None)
    except FileRefused:
        return False
    return True


@asynccontextmanager
async def _closed(pieces: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Close a source that was not read to its end, instead of leaving that to the garbage collector."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
