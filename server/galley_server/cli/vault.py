"""`galley vault`: vaults of the running server, and logins at MCP servers, whose tokens go into one of them."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from galley_vault_proxy.errors import ProxyError
from galley_vault_proxy.oauth.login import login, only_vault
from galley_vault_proxy.secret import Secret as ProxySecret

from galley_server.broker.place import API_SOCKET
from galley_server.errors import ConfigError, GalleyError
from galley_server.home import answers, socket_to_dial
from galley_server.kept import api_key_of, service_key_of
from galley_server.settings import Settings
from galley_server.state import StateFiles

_ANSWER_S: Final = 30.0
_START_S: Final = 15.0
"""The vault proxy starts after its server has said that it is ready."""


class VaultFailed(GalleyError):
    """The server, or its vault proxy, said no. The message says why."""


@dataclass(frozen=True, slots=True)
class Where:
    """The API under /v1, and how it is reached."""

    url: str
    key: ProxySecret
    transport: httpx2.HTTPTransport | None = None

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        with httpx2.Client(
            base_url=self.url,
            headers={"x-api-key": self.key.reveal()},
            transport=self.transport,
            trust_env=False,
            timeout=_ANSWER_S,
        ) as client:
            try:
                answer = client.request(method, path, json=body)
                found = answer.json()
            except (httpx2.HTTPError, ValueError) as error:
                raise VaultFailed(f"no Galley answers at {self.url} ({type(error).__name__})") from None
        if answer.status_code >= 400:
            raise VaultFailed(str(found["error"]["message"]))
        return found


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley vault",
        description="Vaults of the running server of GALLEY_HOME, or of the one that GALLEY_URL names.",
    )
    commands = built.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the vaults and what is in them")
    made = commands.add_parser("create", help="make a vault")
    made.add_argument("name", metavar="NAME", help="what people call it")
    logged = commands.add_parser("login", help="authorise an MCP server in a browser, here or on any other machine")
    logged.add_argument("server", metavar="SERVER", help="URL of the MCP server, as the agent names it")
    logged.add_argument("--vault", metavar="ID", help="the vault; needed when there are several")
    logged.add_argument("--name", help="name of the credential")
    logged.add_argument("--scope", help="scopes to ask for, with blanks between (default: what the server names)")
    logged.add_argument("--client-id", help="the client, where one is registered already; its secret, if it has one,")
    logged.add_argument("--client-secret-env", metavar="VARIABLE", help="is read from this environment variable")
    logged.add_argument(
        "--paste", action="store_true", help="the browser cannot reach the server: paste the address it is sent to"
    )
    return built


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    chosen = parser().parse_args(argv)
    where = _where(environ)
    try:
        match chosen.command:
            case "list":
                _list(where)
            case "create":
                sys.stdout.write(f"{where.ask('POST', '/v1/vaults', {'display_name': chosen.name})['id']}\n")
            case _:
                sys.stdout.write(f"{_login(chosen, where, environ)}\n")
    except ProxyError as error:
        raise VaultFailed(error.message) from None
    return 0


def _where(environ: Mapping[str, str]) -> Where:
    settings = Settings.from_env(environ)
    files = StateFiles(settings.home)
    remote = environ.get("GALLEY_URL", "").strip()
    if remote:
        key = api_key_of(files.api_key, settings.api_key)
        return Where(remote.rstrip("/").removesuffix("/mcp"), ProxySecret(key.reveal()))
    broker = settings.broker
    if broker is None:
        raise ConfigError("GALLEY_BROKER is off: this server has no vaults")
    path = _of_the_server(files.home) if broker.sockets is None else broker.sockets / API_SOCKET
    if path is None or not answers(path):
        raise VaultFailed(f"no vault proxy runs for {settings.home}: start `galley serve` first")
    key = service_key_of(broker.home / "service_key", broker.key)
    return Where("http://localhost", ProxySecret(key.reveal()), httpx2.HTTPTransport(uds=str(path)))


def _of_the_server(home: Path) -> Path | None:
    """Where the vault proxy of the running server listens, as soon as it does."""
    until = time.monotonic() + _START_S
    while True:
        path = socket_to_dial(home, API_SOCKET)
        if answers(path) or not answers(socket_to_dial(home)) or time.monotonic() > until:
            return path
        time.sleep(0.1)


def _list(where: Where) -> None:
    for vault in where.ask("GET", "/v1/vaults?limit=100")["data"]:
        sys.stdout.write(f"{vault['id']}  {vault['display_name']}\n")
        for credential in where.ask("GET", f"/v1/vaults/{vault['id']}/credentials?limit=100")["data"]:
            auth = credential["auth"]
            target = auth.get("mcp_server_url") or auth.get("secret_name")
            sys.stdout.write(f"  {credential['id']}  {auth['type']}  {target}\n")


def _login(chosen: argparse.Namespace, where: Where, environ: Mapping[str, str]) -> str:
    vault_id = chosen.vault or only_vault(where.url, where.key, transport=where.transport)
    return login(
        chosen.server,
        vault_id=vault_id,
        proxy_url=where.url,
        key=where.key,
        transport=where.transport,
        say=_say,
        redirected=_pasted if chosen.paste else None,
        scope=chosen.scope,
        client_id=chosen.client_id,
        client_secret=_client_secret(chosen.client_secret_env, environ),
        display_name=chosen.name,
    )


def _client_secret(name: str | None, environ: Mapping[str, str]) -> ProxySecret | None:
    # Never as an argument: arguments are there for every user of the machine to see.
    if name is None:
        return None
    if not environ.get(name):
        raise ConfigError(f"--client-secret-env: {name} is not set")
    return ProxySecret(environ[name])


def _say(url: str) -> None:
    # On stderr: stdout is for the id.
    sys.stderr.write(f"Open this address in a browser:\n\n  {url}\n\n")
    sys.stderr.flush()


def _pasted() -> str:
    sys.stderr.write("Paste the address that the browser was sent to:\n")
    sys.stderr.flush()
    return sys.stdin.readline()
