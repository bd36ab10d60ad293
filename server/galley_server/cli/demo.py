"""`galley demo`: play one session from end to end and show it."""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from galley_server.demo.play import Stage, play
from galley_server.demo.timeline import Timeline


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    chosen = parser().parse_args(argv)
    timeline = Timeline(sys.stdout, width=max(80, shutil.get_terminal_size((120, 24)).columns))
    return asyncio.run(play(Stage(chosen.csv, chosen.live, environ), timeline))


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley demo",
        description="Start a server on a temporary home, have an agent analyze a CSV file in its sandbox, and show "
        "every event as it happens. Needs no key, no Docker and no network.",
    )
    built.add_argument(
        "--csv", type=Path, metavar="FILE", help="your own file, with columns like product, price, quantity"
    )
    built.add_argument("--live", action="store_true", help="ask the configured model instead of the scripted one")
    return built
