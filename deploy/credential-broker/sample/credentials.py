"""What a person does once: stores two credentials at the broker, with the official SDK, and says what a sandbox may do.

    BROKER_URL=... credentials.py KEY-FILE SECRETS-FOLDER REQUEST.json

REQUEST.json is what `grant.py` then has grants made from.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic

# The credentials differ, and a vault that is there is left as it is.
NAME = "sample with stdio" if os.environ.get("SAMPLE_STDIO") else "sample"
STDIO = bool(os.environ.get("SAMPLE_STDIO"))
OUTSIDE = os.environ.get("OUTSIDE", "https://outside.sample.internal:8443")


def store(client: anthropic.Anthropic, token: str, api_key: str) -> str:
    """The vault that holds both, made at the first time."""
    for vault in client.beta.vaults.list():
        if vault.display_name == NAME:
            return vault.id
    vault = client.beta.vaults.create(display_name=NAME)
    client.beta.vaults.credentials.create(
        vault.id, auth={"type": "static_bearer", "mcp_server_url": f"{OUTSIDE}/mcp", "token": token}
    )
    if STDIO:
        client.beta.vaults.credentials.create(
            vault.id, auth={"type": "static_bearer", "mcp_server_url": "stdio:sample", "token": token}
        )
    client.beta.vaults.credentials.create(
        vault.id,
        auth={
            "type": "environment_variable",
            "secret_name": "SAMPLE_API_KEY",
            "secret_value": api_key,
            "networking": {"type": "limited", "allowed_hosts": [urlsplit(OUTSIDE).hostname or ""]},
        },
    )
    return vault.id


def request(vault_id: str) -> dict[str, Any]:
    """One tool of one server, one path of one host, for an hour, through one tunnel if the sample has one."""
    outside = urlsplit(OUTSIDE)
    stdio = [{"name": "local", "url": "stdio:sample"}] if STDIO else []
    return {
        "session_id": "sample",
        "vault_ids": [vault_id],
        "mcp_servers": [{"name": "sample", "url": f"{OUTSIDE}/mcp", "tools": ["add"]}, *stdio],
        "hosts": [{"host": outside.hostname, "ports": [outside.port or 443], "methods": ["GET"], "paths": ["/echo"]}],
        "expires_in": 3600,
        **({"tunnel": os.environ["SAMPLE_TUNNEL"]} if os.environ.get("SAMPLE_TUNNEL") else {}),
    }


def main(key_file: Path, secrets: Path, to: Path) -> None:
    client = anthropic.Anthropic(base_url=os.environ["BROKER_URL"], api_key=key_file.read_text().strip())
    token, api_key = ((secrets / name).read_text().strip() for name in ("mcp_token", "api_key"))
    to.write_text(json.dumps(request(store(client, token, api_key)), indent=2) + "\n")
    sys.stdout.write(f"credentials are stored; {to.name} is written\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
