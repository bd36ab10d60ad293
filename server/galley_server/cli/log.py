"""`galley log`: a session's log as it stands in the store, also while a server runs. Reads, and never writes."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

from galley_server.errors import ChainBroken, ConfigError, InvalidRequest
from galley_server.gist import gist
from galley_server.home import home_of
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.projection import is_internal
from galley_server.log.row import HeadMark, Row, parse_cursor
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries, Summary
from galley_server.log.verify import Verified, reading, session_ids, verify
from galley_server.state import StateFiles
from galley_server.wire.base import rfc3339

_PAGE: Final = 500


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    chosen = parser().parse_args(argv)
    files = existing_store(environ)
    match chosen.what:
        case "verify":
            return _verify(files, chosen.session_id, chosen.head)
        case "show":
            asyncio.run(_show(files, chosen.session_id, chosen.after, internal=chosen.internal))
        case _:
            asyncio.run(_export(files, chosen.session_id, chosen.output))
    return 0


def existing_store(environ: Mapping[str, str]) -> StateFiles:
    files = StateFiles(home_of(environ))
    if not files.database.exists():
        raise ConfigError(f"there is no store in {files.home}: set GALLEY_HOME to the home that the server uses")
    return files


def key_of(files: StateFiles) -> ChainKey:
    """The key as it is. Opening it like a server would make a new one where it is missing."""
    if not files.chain_key.exists():
        raise ConfigError(f"{files.chain_key} is missing: without it nothing can be proven; restore it from a backup")
    return ChainKey.open(files.chain_key)


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(prog="galley log", description="Look at a session's log, also while a server runs.")
    commands = built.add_subparsers(dest="what", required=True, metavar="show|verify|export")
    show = commands.add_parser("show", help="one line per row")
    show.add_argument("session_id", metavar="SESSION_ID")
    show.add_argument(
        "--after", type=_position, default=0, metavar="ROW", help="only what follows this row, e.g. row_12"
    )
    show.add_argument("--internal", action="store_true", help="also the rows that no client sees")
    verified = commands.add_parser("verify", help="prove that nothing was changed; without SESSION_ID, in all sessions")
    verified.add_argument("session_id", metavar="SESSION_ID", nargs="?")
    verified.add_argument("--head", type=_head, help="prove too that nothing before this head, noted earlier, was cut")
    export = commands.add_parser("export", help="every row as one line of JSON, internal ones too")
    export.add_argument("session_id", metavar="SESSION_ID")
    export.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to stdout")
    return built


def _position(text: str) -> int:
    seq = parse_cursor(text if text.startswith("row_") else f"row_{text}")
    if seq is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a row: use row_N, as `galley log show` prints it")
    return seq


def _head(text: str) -> HeadMark:
    try:
        return HeadMark.parse(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _verify(files: StateFiles, session_id: str | None, head: HeadMark | None) -> int:
    if session_id is None and head is not None:
        raise ConfigError("--head belongs to one session: name it")
    key = key_of(files)
    broken = 0
    with reading(files.database) as connection:
        for one in session_ids(connection) if session_id is None else [session_id]:
            try:
                sys.stdout.write(_proven(verify(connection, key, one, head)))
            except ChainBroken as error:
                broken += 1
                sys.stdout.write(f"BROKEN {error}\n")
    return 1 if broken else 0


def _proven(found: Verified) -> str:
    deleted = ""
    if found.tombstone is not None:
        deleted = f" (deleted {rfc3339(found.tombstone.at)} by {found.tombstone.caller}; its tombstone is signed)"
    return f"ok {found.session_id} head {found.head}{deleted}\n"


async def _show(files: StateFiles, session_id: str, after: int, *, internal: bool) -> None:
    async for row in _rows(files, session_id, after):
        if internal or not is_internal(row):
            line = gist(json.loads(row.body), width=_width() - 52)
            sys.stdout.write(f"{row.seq:>6}  {row.at.astimezone():%H:%M:%S}  {row.type:<30}  {line}".rstrip() + "\n")


async def _export(files: StateFiles, session_id: str, output: Path | None) -> None:
    if output is None:
        await _write_rows(sys.stdout, files, session_id)
        return
    try:
        # Sessions hold what people said: the file is for its owner alone, and an older one is not overwritten.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        await _write_rows(file, files, session_id)


async def _write_rows(file: TextIO, files: StateFiles, session_id: str) -> None:
    async for row in _rows(files, session_id, 0):
        facts = json.dumps({"seq": row.seq, "id": row.id, "type": row.type, "at": rfc3339(row.at)})
        file.write(f'{facts[:-1]}, "body": {row.body.decode()}}}\n')


async def _rows(files: StateFiles, session_id: str, after: int) -> AsyncIterator[Row]:
    async with _store(files) as store:
        while page := await store.read(session_id, after=after, limit=_PAGE):
            for row in page:
                yield row
            after = page[-1].seq


@asynccontextmanager
async def _store(files: StateFiles) -> AsyncIterator[SqliteStore[Summary]]:
    """The store, only to be read: not opened as a server would, which would claim it."""
    async with Database.open(files.database, readonly=True) as database:
        yield SqliteStore(database, key_of(files), SessionSummaries(), clock=lambda: datetime.now(UTC))


def _width() -> int:
    return max(80, os.get_terminal_size().columns) if sys.stdout.isatty() else 160
