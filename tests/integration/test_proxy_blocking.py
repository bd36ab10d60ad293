"""Nothing the proxy does for one request may block the event loop: every other stream waits for it meanwhile."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from blockbuster import blockbuster_ctx
from galley_vault_proxy.app import Listen, Tcp, running
from galley_vault_proxy.errors import AddressRefused
from galley_vault_proxy.http.serving import Address
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import Settings

from tests.integration.proxy_kit import KEY

pytestmark = pytest.mark.anyio


async def everything(client: httpx2.AsyncClient) -> None:
    for number in range(3):
        made = await client.post("/v1/grants", json={"session_id": f"sesn_{number}", "expires_in": 60})
        assert (await client.get(f"/v1/grants/{made.json()['id']}")).status_code == 200
    assert (await client.delete(f"/v1/grants/{made.json()['id']}")).status_code == 200
    assert (await client.delete("/v1/sessions/sesn_0")).status_code == 200
    assert (await client.get("/v1/audit")).json()["data"]
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/v1/nothing", headers={"x-api-key": "x"})).status_code == 401
    with pytest.raises(AddressRefused):
        await Netguard().connect("localhost", 80)


def url_of(address: Address | None) -> str:
    assert address is not None
    return address.url


async def test_the_spine_blocks_nothing(tmp_path: Path) -> None:
    settings = Settings(tmp_path, key=Secret(KEY))
    async with (
        asyncio.timeout(30),
        running(settings, Listen(Tcp("127.0.0.1", 0, 0))) as address,
        httpx2.AsyncClient(base_url=url_of(address), headers={"x-api-key": KEY}, trust_env=False) as client,
    ):
        # Once before: what libraries import and read at their first use is not what is asked about.
        await everything(client)
        with blockbuster_ctx("galley_vault_proxy"):
            await everything(client)
