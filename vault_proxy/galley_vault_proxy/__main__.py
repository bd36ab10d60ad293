"""The `galley-vault-proxy` command: finds the subcommand, runs it, turns errors into one line and an exit status."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from galley_vault_proxy.errors import ConfigError, ProxyError


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the help, and where the subcommand lives."""

    module: str
    help: str


COMMANDS: Final[Mapping[str, Entry]] = {
    "serve": Entry("galley_vault_proxy.cli.serve", "run the proxy"),
    "narrow": Entry("galley_vault_proxy.cli.narrow", "make a grant allow less: token on stdin, token on stdout"),
    "login": Entry("galley_vault_proxy.oauth.command", "authorise an MCP server in a browser, here or elsewhere"),
    "bootstrap": Entry("galley_vault_proxy.bootstrap", "write into Vault what the proxy needs, as an operator"),
    "hand-over": Entry("galley_vault_proxy.hand_over", "put a login at Vault into files, for the proxy to start with"),
    "doctor": Entry("galley_vault_proxy.doctor", "try what the proxy needs of its secret store, with the fix"),
    "reconcile": Entry("galley_vault_proxy.reconcile", "find what Vault holds and the proxy no longer knows"),
    "vault-name": Entry("galley_vault_proxy.cli.vault_name", "print how a vault is called inside Vault"),
    "rotate-key": Entry("galley_vault_proxy.cli.rotate_key", "seal the embedded store anew under a new key"),
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
    if name not in COMMANDS:
        sys.stderr.write(f"galley-vault-proxy: {name!r} is not a command; `galley-vault-proxy --help` lists them\n")
        return 2
    return _run(COMMANDS[name], rest, environ)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  galley-vault-proxy {name:<{width}}  {entry.help}" for name, entry in COMMANDS.items()]
    return "\n".join(["Usage:", *lines, "", "`galley-vault-proxy COMMAND --help` says more.", ""])


def _run(entry: Entry, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    # Imported by name and only now: `narrow` must need nothing of what the server needs.
    command = cast(Command, importlib.import_module(entry.module))
    try:
        return command.main(argv, environ)
    except ProxyError as error:
        return _say(error)
    except BaseExceptionGroup as group:
        # An error that left through task groups; anything else is a defect and keeps its traceback.
        found, rest = group.split(ProxyError)
        if found is None or rest is not None:
            raise
        return _say(_first(found))
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


def _say(error: ProxyError) -> int:
    sys.stderr.write(f"galley-vault-proxy: {error}\n")
    return 2 if isinstance(error, ConfigError) else 1


def _first(group: BaseExceptionGroup[ProxyError]) -> ProxyError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


if __name__ == "__main__":
    raise SystemExit(main())
