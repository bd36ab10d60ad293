"""One of several processes that share a vault proxy's home: asks for a credential many times at once.

Arguments: home, vault id, URL of the MCP server, how many times. Prints `asking`, then what it was given, one a line.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from galley_vault_proxy.audit import Audit
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.oauth.assembly import SCHEMAS, open_credentials
from galley_vault_proxy.state import State
from galley_vault_proxy.store.embedded import EmbeddedStore

from tests.integration.proxy_credentials_kit import LOOPBACK, ONCE_KEY


async def main(home: Path, vault_id: str, url: str, times: int) -> None:
    async with (
        State.open(home / "state.db", SCHEMAS) as state,
        Audit.open(home / f"audit-{os.getpid()}", max_bytes=8 << 20) as audit,
        EmbeddedStore.open(home) as store,
        open_credentials(
            state, store, audit, Netguard(LOOPBACK), key=ONCE_KEY, base_url=lambda: "http://127.0.0.1:1"
        ) as part,
    ):
        await store.open_session("sesn_1", [vault_id], datetime.now(UTC) + timedelta(hours=1))
        sys.stdout.write("asking\n")
        sys.stdout.flush()
        asked = (part.source.for_mcp("sesn_1", [vault_id], url) for _ in range(times))
        for found in await asyncio.gather(*asked):
            sys.stdout.write(f"{'none' if found is None else found.value.reveal()}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
