"""`galley serve`: run the server in the foreground."""

import argparse
from collections.abc import Mapping, Sequence

from galley_server.app import Listen, serve
from galley_server.cli.port import DEFAULT_PORT, port
from galley_server.settings import Settings

DEFAULT_HOST = "127.0.0.1"
GRACE_S = 60.0


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley serve",
        description="Run the server of GALLEY_HOME. Prints `galley ready URL` on stdout when it accepts requests.",
    )
    built.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default %(default)s)")
    built.add_argument("--port", type=port, default=None, help=f"port to listen on (default {DEFAULT_PORT})")
    # For `galley mcp`, which starts the home's server: it ends by itself so many seconds after its last need.
    built.add_argument("--detached", nargs="?", type=float, const=GRACE_S, metavar="SECONDS", help=argparse.SUPPRESS)
    return built


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    chosen = parser().parse_args(argv)
    listen = Listen(
        host=chosen.host,
        port=DEFAULT_PORT if chosen.port is None else chosen.port,
        # A detached server is reached over the home's socket; a taken default port must not keep it from starting.
        any_port_will_do=chosen.detached is not None and chosen.port is None,
        grace_s=chosen.detached,
    )
    return serve(Settings.from_env(environ), listen)
