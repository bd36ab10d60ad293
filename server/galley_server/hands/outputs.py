"""Keeping what a session put into its outputs directory, so that it outlives the sandbox."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Final

from galley_sandbox.errors import CallRefused, FileRefused
from galley_sandbox.port import OUTPUTS, Hand

from galley_server.errors import RequestError
from galley_server.hands.line import Line, answer_within
from galley_server.hands.port import OutputSink
from galley_server.ids import new_id

log: Final = logging.getLogger(__name__)

FILE_S: Final = 30.0
"""How long a file's way out of the sandbox may stand still."""

MAX_FILES: Final = 200
"""How many files of one session are looked at; the `glob` tool lists no more."""


async def keep_outputs(line: Line, session_id: str, sink: OutputSink) -> None:
    """Store every file there is. What cannot be stored is logged and stops nothing. Raises SandboxLost."""
    for path in await _listed(line.hand):
        name = path.removeprefix(f"{OUTPUTS}/").replace("/", "_")
        try:
            async with answer_within(FILE_S) as patience, aclosing(_content(line.hand, path, patience)) as content:
                await sink.keep(session_id, name, content)
        except FileRefused:
            continue  # a directory, a link to the outside, or a file that has just gone
        except RequestError as error:
            log.warning("output %s of %s is not kept: %s", name, session_id, error.message)


async def _listed(hand: Hand) -> list[str]:
    """The newest files of the directory. The hand's answer is untrusted: only paths below the directory count."""
    call_id = new_id("irow")
    try:
        async with answer_within(FILE_S):
            found = await hand.call(call_id, "glob", {"pattern": "**/*", "path": OUTPUTS})
            with suppress(CallRefused):
                await hand.acknowledge(call_id)
    except CallRefused:
        return []
    if found.is_error:
        return []
    return [line for line in found.text.splitlines()[:MAX_FILES] if line.startswith(f"{OUTPUTS}/")]


async def _content(hand: Hand, path: str, patience: asyncio.Timeout) -> AsyncGenerator[bytes, None]:
    """The file, piece by piece; each piece that comes buys time for the next."""
    pieces: AsyncIterator[bytes] = hand.get_file(path)
    async for piece in pieces:
        patience.reschedule(asyncio.get_running_loop().time() + FILE_S)
        yield piece
