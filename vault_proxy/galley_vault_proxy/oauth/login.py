"""A login from a terminal: print the URL, wait until somebody has been there. For `galley-vault-proxy login`, and for
whoever wants to offer the same.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Final

import httpx2

from galley_vault_proxy.errors import InvalidRequest, ProxyError, Unreachable
from galley_vault_proxy.secret import Secret

_LOOK_S: Final = 1.0
_PATIENCE_S: Final = 600.0


class LoginFailed(ProxyError):
    """It ended without a credential. The message says why."""


def login(
    server_url: str,
    *,
    vault_id: str,
    proxy_url: str,
    key: Secret,
    say: Callable[[str], None],
    redirected: Callable[[], str] | None = None,
    scope: str | None = None,
    client_id: str | None = None,
    client_secret: Secret | None = None,
    display_name: str | None = None,
    timeout_s: float = _PATIENCE_S,
    transport: httpx2.BaseTransport | None = None,
) -> str:
    """Have somebody authorise an MCP server; return the id of the credential.

    `say` is given the URL to open. `redirected`, for a browser that cannot reach the proxy: asks its user for the
    address that the browser was sent to; without it the proxy's own callback is waited for. `transport`: how to reach
    the proxy, if not over TCP. Raises LoginFailed, InvalidRequest, Unreachable.
    """
    asked = {
        "vault_id": vault_id,
        "mcp_server_url": server_url,
        "scope": scope,
        "client_id": client_id,
        "client_secret": None if client_secret is None else client_secret.reveal(),
        "display_name": display_name,
    }
    headers = {"x-api-key": key.reveal()}
    with httpx2.Client(
        base_url=proxy_url, headers=headers, transport=transport, trust_env=False, timeout=httpx2.Timeout(90, connect=5)
    ) as client:
        begun = _ask(client, "POST", "/v1/oauth/logins", {name: value for name, value in asked.items() if value})
        path = f"/v1/oauth/logins/{begun['id']}"
        say(str(begun["url"]))
        if redirected is not None:
            return _credential(_ask(client, "POST", f"{path}/redirect", {"url": redirected().strip()}))
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            found = _ask(client, "GET", path)
            if found["status"] not in ("pending", "exchanging"):
                return _credential(found)
            time.sleep(_LOOK_S)
    raise LoginFailed(f"nobody has authorised {server_url} within {timeout_s:.0f} s: begin again")


def only_vault(proxy_url: str, key: Secret, *, transport: httpx2.BaseTransport | None = None) -> str:
    """The one vault there is. Raises InvalidRequest when one must be chosen or made first."""
    with httpx2.Client(
        base_url=proxy_url, headers={"x-api-key": key.reveal()}, transport=transport, trust_env=False, timeout=10
    ) as client:
        found = _ask(client, "GET", "/v1/vaults")
    vaults = found.get("data")
    if not isinstance(vaults, list) or not vaults:
        raise InvalidRequest("there is no vault yet: make one with POST /v1/vaults")
    if len(vaults) > 1:
        names = ", ".join(f"{vault['id']} ({vault['display_name']})" for vault in vaults)
        raise InvalidRequest(f"there are several vaults: choose one with --vault. There are: {names}")
    return str(vaults[0]["id"])


def _ask(
    client: httpx2.Client, method: str, path: str, body: Mapping[str, object] | None = None
) -> Mapping[str, object]:
    try:
        answer = client.request(method, path, json=body)
        found = answer.json()
    except httpx2.HTTPError as error:
        raise Unreachable(f"no vault proxy answers at {client.base_url} ({type(error).__name__})") from None
    except json.JSONDecodeError:
        raise Unreachable(f"what answers at {client.base_url} is not a vault proxy") from None
    if answer.status_code >= 400:
        about = found.get("error") if isinstance(found, dict) else None
        message = about.get("message") if isinstance(about, dict) else None
        raise LoginFailed(str(message or f"the vault proxy answered {answer.status_code}"))
    return found if isinstance(found, dict) else {}


def _credential(found: Mapping[str, object]) -> str:
    if found.get("status") != "completed":
        raise LoginFailed(f"the login {found.get('status')}: {found.get('error') or 'begin it again'}")
    return str(found["credential_id"])
