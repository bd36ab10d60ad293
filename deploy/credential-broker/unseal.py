"""The sample's stand-in for the people who initialise and unseal the store. NOT FOR PRODUCTION.

    VAULT_ADDR=... VAULT_CACERT=... unseal.py FOLDER

It keeps the only unseal key and the root token in FOLDER, so whoever reads that folder owns every secret: sealing
protects nothing here. In production unsealing is the operators' (several key shares, or an auto-unseal), the root token
is used once and revoked, and this is not run at all. Works on OpenBao and on HashiCorp Vault.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AUDIT_FILE = "/openbao/logs/audit.log"
_PATIENCE_S = 60.0
_WARNING = """
    ==================================================================================
    The store was initialised with ONE unseal key, and that key and the root token lie
    in a folder of this sample. Do not keep a secret in here that you would miss.
    ==================================================================================
"""


class Store:
    def __init__(self, address: str, authority: str | None) -> None:
        self._address = address
        self._tls = ssl.create_default_context(cafile=authority)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, token: str = "") -> dict[str, Any]:
        headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity", "X-Galley-Session": "galley-unseal"}
        request = urllib.request.Request(
            f"{self._address}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={**headers, **({"X-Vault-Token": token} if token else {})},
        )
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        with urllib.request.build_opener(*handlers).open(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
            return found

    def when_there(self) -> dict[str, Any]:
        """Its status, as soon as it answers."""
        ends = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.ask("GET", "sys/seal-status")
            except OSError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.5)


def main(folder: Path, environ: Mapping[str, str]) -> int:
    store = Store(environ["VAULT_ADDR"].rstrip("/"), environ.get("VAULT_CACERT"))
    status = store.when_there()
    if not status["initialized"]:
        made = store.ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        keep(folder / "unseal_key", made["keys"][0])
        keep(folder / "root_token", made["root_token"])
        sys.stderr.write(_WARNING)
        status = {"sealed": True}
    if status["sealed"]:
        status = store.ask("PUT", "sys/unseal", {"key": (folder / "unseal_key").read_text().strip()})
    if status["sealed"]:
        sys.stderr.write("unseal.py: one key does not unseal this store: it was not this sample that initialised it\n")
        return 1
    token = (folder / "root_token").read_text().strip()
    when_active(store)
    # OpenBao declares its audit log in the configuration; Vault has to be told.
    if not store.ask("GET", "sys/audit", token=token).get("data"):
        store.ask("PUT", "sys/audit/main", {"type": "file", "options": {"file_path": AUDIT_FILE}}, token)
    sys.stdout.write("unsealed\n")
    return 0


def when_active(store: Store) -> None:
    """Between unsealing and being the active node lies a moment."""
    ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            store.ask("GET", "sys/health")
            return
        except urllib.error.HTTPError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


def keep(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), os.environ))
