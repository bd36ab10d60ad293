"""`galley-vault-proxy narrow`: a token on stdin, a narrower one on stdout. No key, no network, no settings, no home."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from galley_vault_proxy.errors import GrantRefused
from galley_vault_proxy.grant.narrow import narrow
from galley_vault_proxy.grant.token import MAX_TOKEN


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= 10 * 365 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley-vault-proxy narrow",
        description="Read a grant's token from stdin and write one that allows less, e.g. for a child agent.",
    )
    built.add_argument("--server", action="append", metavar="NAME", help="keep this MCP server only (repeatable)")
    built.add_argument(
        "--tool", action="append", metavar="NAME", help="keep this tool only, of each server (repeatable)"
    )
    built.add_argument(
        "--without", action="append", metavar="NAME", help="take this tool away, of each server (repeatable)"
    )
    built.add_argument("--expires-in", type=seconds, metavar="S", help="end in S seconds, if not sooner anyway")
    return built


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    asked = parser().parse_args(argv)
    # A pipe that never ends must not fill the memory; what is longer is no token anyway.
    token = sys.stdin.read(MAX_TOKEN + 2).strip()
    if not token:
        raise GrantRefused("missing")
    narrower = narrow(token, servers=asked.server, tools=asked.tool, without=asked.without, expires_in=asked.expires_in)
    sys.stdout.write(f"{narrower}\n")
    return 0
