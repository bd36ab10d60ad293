"""`galley-vault-proxy serve`: run the proxy in the foreground."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from galley_vault_proxy.app import Listen, Tcp, serve
from galley_vault_proxy.settings import Settings

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8430
DEFAULT_EGRESS_PORT = 8431


def port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use 0 to 65535 (0 takes any free one)")
    return number


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley-vault-proxy serve",
        description="Run the proxy. Prints `galley-vault-proxy ready URL` on stdout when it accepts requests.",
    )
    built.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default %(default)s)")
    built.add_argument("--port", type=port, default=DEFAULT_PORT, help="port of API and MCP door (default %(default)s)")
    built.add_argument(
        "--egress-port", type=port, default=DEFAULT_EGRESS_PORT, help="port of the egress door (default %(default)s)"
    )
    built.add_argument("--uds", type=Path, metavar="PATH", help="Unix socket of API and MCP door, for tunnels too")
    built.add_argument("--egress-uds", type=Path, metavar="PATH", help="Unix socket of the egress door, for tunnels")
    built.add_argument("--no-tcp", action="store_true", help="listen on the two Unix sockets only")
    built.add_argument("--lifeline", action="store_true", help="end when standard input does: with whoever started it")
    return built


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    usage = parser()
    chosen = usage.parse_args(argv)
    if chosen.no_tcp and (chosen.uds is None or chosen.egress_uds is None):
        usage.error("--no-tcp needs --uds and --egress-uds")
    tcp = None if chosen.no_tcp else Tcp(chosen.host, chosen.port, chosen.egress_port)
    listen = Listen(tcp, chosen.uds, chosen.egress_uds)
    return serve(Settings.from_env(environ), listen, lifeline=chosen.lifeline)
