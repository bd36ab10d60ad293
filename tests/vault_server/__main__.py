"""`python -m tests.vault_server`: the test server by itself, bootstrapped by whoever wants to look at it."""

import sys
import threading

from tests.vault_server.server import running

if __name__ == "__main__":
    with running(int(sys.argv[1]) if len(sys.argv) > 1 else 8200) as server:
        sys.stdout.write(f"VAULT_ADDR={server.vault.address} VAULT_TOKEN={server.vault.root_token}\n")
        sys.stdout.flush()
        threading.Event().wait()
