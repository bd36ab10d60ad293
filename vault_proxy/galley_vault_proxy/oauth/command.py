"""`galley-vault-proxy login SERVER`: authorise an MCP server in a browser, here or on any other machine."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.kept import service_key_of
from galley_vault_proxy.oauth.login import login, only_vault
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import Settings

DEFAULT_URL: Final = "http://127.0.0.1:8430"


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="galley-vault-proxy login",
        description="Authorise an MCP server: prints a URL to open, and stores the tokens in a vault of the proxy.",
    )
    built.add_argument("server", metavar="SERVER", help="URL of the MCP server")
    built.add_argument("--vault", metavar="ID", help="the vault; needed when there are several")
    built.add_argument("--name", help="name of the credential")
    built.add_argument("--scope", help="scopes to ask for, with blanks between (default: what the server names)")
    built.add_argument("--client-id", help="the client, where one is registered already; its secret, if it has one,")
    built.add_argument("--client-secret-env", metavar="VARIABLE", help="is read from this environment variable")
    built.add_argument("--proxy", metavar="URL", help=f"the running proxy (default GALLEY_PROXY_URL, {DEFAULT_URL})")
    built.add_argument(
        "--paste", action="store_true", help="the browser cannot reach the proxy: paste the address it is sent to"
    )
    return built


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    asked = parser().parse_args(argv)
    settings = Settings.from_env(environ)
    proxy_url = (asked.proxy or settings.url or DEFAULT_URL).rstrip("/")
    key = _key(settings)
    credential_id = login(
        asked.server,
        vault_id=asked.vault or only_vault(proxy_url, key),
        proxy_url=proxy_url,
        key=key,
        say=_say,
        redirected=_pasted if asked.paste else None,
        scope=asked.scope,
        client_id=asked.client_id,
        client_secret=_client_secret(asked.client_secret_env, environ),
        display_name=asked.name,
    )
    sys.stdout.write(f"{credential_id}\n")
    return 0


def _key(settings: Settings) -> Secret:
    if settings.key is None and not os.path.exists(settings.home / "service_key"):
        raise ConfigError(
            f"{settings.home} has no service key: set GALLEY_PROXY_KEY, or GALLEY_PROXY_HOME to the running proxy's"
        )
    return service_key_of(settings.home, settings.key)


def _client_secret(name: str | None, environ: Mapping[str, str]) -> Secret | None:
    # Never as an argument: arguments are there for every user of the machine to see.
    if name is None:
        return None
    if not environ.get(name):
        raise ConfigError(f"--client-secret-env: {name} is not set")
    return Secret(environ[name])


def _say(url: str) -> None:
    # On stderr: stdout is for the id.
    sys.stderr.write(f"Open this address in a browser:\n\n  {url}\n\n")
    sys.stderr.flush()


def _pasted() -> str:
    sys.stderr.write("Paste the address that the browser was sent to:\n")
    sys.stderr.flush()
    return sys.stdin.readline()
