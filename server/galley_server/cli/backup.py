"""`galley backup FILE`: one consistent copy of the store, also while a server runs."""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from galley_server.cli.log import existing_store, key_of
from galley_server.log.backup import backup


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    chosen = parser().parse_args(argv)
    files = existing_store(environ)
    made = asyncio.run(backup(files.database, chosen.file, key_of(files)))
    sys.stdout.write(
        f"{made.path}: {made.sessions} sessions, {made.size:,} bytes, every chain verified\n"
        f"Not in it, so keep copies: the key of the log, {files.chain_key} (in another place), and the contents of "
        f"uploaded files, {files.uploads}.\n"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley backup",
        description="Copy the store of GALLEY_HOME into one file, also while a server runs, and verify the copy.",
    )
    built.add_argument("file", type=Path, metavar="FILE", help="where to; a file that exists is not overwritten")
    return built
