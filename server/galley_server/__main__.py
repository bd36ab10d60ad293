"""The `galley` command: finds the subcommand, runs it, and turns what can go wrong into one line and an exit status."""

import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from galley_server import __version__
from galley_server.errors import ConfigError, GalleyError


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the help, and where the subcommand lives."""

    module: str
    help: str


COMMANDS: Final[Mapping[str, Entry]] = {
    "serve": Entry("galley_server.cli.serve", "run the server"),
    "mcp": Entry("galley_server.cli.mcp", "speak MCP on stdin and stdout, for Claude Desktop and other MCP clients"),
    "demo": Entry("galley_server.cli.demo", "start everything on a temporary home and play one session"),
    "doctor": Entry("galley_server.cli.doctor", "check the sandbox, the model endpoint and the store, with the fix"),
    "vault": Entry("galley_server.cli.vault", "list and make vaults, and log in at MCP servers"),
    "log": Entry("galley_server.cli.log", "show, verify or export a session's log"),
    "backup": Entry("galley_server.cli.backup", "copy the store into a file, also while the server runs"),
}


class Command(Protocol):
    """What the module of a subcommand holds."""

    def main(self, argv: Sequence[str], environ: Mapping[str, str]) -> int: ...


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in {"-h", "--help"}:
        sys.stdout.write(usage())
        return 0 if words else 2
    if name in {"-V", "--version"}:
        sys.stdout.write(f"galley {__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"galley: {name!r} is not a command; `galley --help` lists them\n")
        return 2
    return _run(COMMANDS[name], rest, environ)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  galley {name:<{width}}  {entry.help}" for name, entry in COMMANDS.items()]
    return "\n".join(
        ["Usage:", *lines, "", "`galley COMMAND --help` says more. `galley --version` prints the version.", ""]
    )


def _run(entry: Entry, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    command = _load(entry.module)
    try:
        return command.main(argv, environ)
    except ConfigError as error:
        sys.stderr.write(f"galley: {error}\n")
        return 2
    except GalleyError as error:
        sys.stderr.write(f"galley: {error}\n")
        return 1
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


def _load(module: str) -> Command:
    """Imported by name and only now: the server's imports take seconds, and `galley mcp` must answer within 0.3 s."""
    # Modules are no garbage: looking for some among them at every step is a tenth of that time.
    gc.disable()
    try:
        return cast(Command, importlib.import_module(module))
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    raise SystemExit(main())
