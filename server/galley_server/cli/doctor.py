"""`galley doctor`: print the report, end with 1 if something that the server needs fails."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from galley_server.cli.port import DEFAULT_PORT, port
from galley_server.doctor import Finding, Verdict, examine
from galley_server.gist import printable
from galley_server.settings import Settings

_MARKS: Final[Mapping[Verdict, str]] = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    chosen = parser().parse_args(argv)
    findings = asyncio.run(examine(Settings.from_env(environ), port=chosen.port))
    if chosen.json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write("".join(shown(finding) for finding in findings))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley doctor",
        description="Try what the server needs (sandboxes, model endpoint, store) and say how to fix what fails. "
        "Asks the model for one word, runs one command in a throw-away sandbox, changes nothing.",
    )
    built.add_argument("--json", action="store_true", help="for programs")
    built.add_argument("--port", type=port, default=DEFAULT_PORT, help="the port to look at (default %(default)s)")
    return built


def shown(finding: Finding) -> str:
    line = f"{_MARKS[finding.verdict]}  {finding.subject:<22}  {printable(finding.detail)}\n"
    if finding.verdict == "ok" or finding.fix is None:
        return line
    return f"{line}      to fix it: {printable(finding.fix)}\n"
