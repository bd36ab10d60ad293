"""`galley-vault-proxy serve` in front of a Vault that goes away, comes back, and cannot be logged in to."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.integration.proxy_kit import Proxy, clean_environment, proxy
from tests.vault_server.server import Running
from tests.vault_server.server import running as running_vault

pytestmark = pytest.mark.anyio


@pytest.fixture
def vault() -> Iterator[Running]:
    with running_vault() as server:
        yield server


def environ(vault: Running) -> dict[str, str]:
    return {"VAULT_ADDR": vault.vault.address, "VAULT_TOKEN": vault.vault.root_token}


async def bootstrap(vault: Running) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "galley_vault_proxy", "bootstrap"),
        env={**clean_environment(), **environ(vault)},
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def readiness(running: Proxy) -> tuple[int, str]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{running.url}/readyz")
        return answer.status_code, answer.json().get("reason", "")


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def credential(client: httpx2.AsyncClient) -> str:
    vault_id = (await client.post("/v1/vaults", json={"display_name": "v"})).json()["id"]
    auth = {"type": "static_bearer", "mcp_server_url": "https://mcp.example/v1", "token": "canary-in-vault"}
    made = await client.post(f"/v1/vaults/{vault_id}/credentials", json={"auth": auth})
    assert made.status_code == 200, made.text
    return str(vault_id)


async def test_with_vault_nothing_secret_is_on_this_machine(tmp_path: Path, vault: Running) -> None:
    await bootstrap(vault)
    async with proxy(tmp_path, environ=environ(vault)) as running, running.client() as client:
        assert await readiness(running) == (200, "")
        vault_id = await credential(client)
        await running.grant("sesn_1", vault_ids=[vault_id])
        assert (await client.delete("/v1/sessions/sesn_1")).json()["leases"] == "revoked"
        assert await running.stop() == 0
    kept = everything_in(tmp_path)
    assert b"canary-in-vault" not in kept
    assert vault.vault.root_token.encode() not in kept


async def test_a_sealed_vault_is_told_and_waited_for(tmp_path: Path, vault: Running) -> None:
    await bootstrap(vault)
    async with proxy(tmp_path, environ=environ(vault)) as running, running.client() as client:
        vault_id = await credential(client)
        vault.vault.trouble = "sealed"
        status, reason = await readiness(running)
        assert (status, "seal" in reason.lower()) == (503, True)
        # Grants are the proxy's own: they are made and revoked while Vault is away.
        grant = await running.grant("sesn_1", vault_ids=[vault_id])
        assert (await client.delete(f"/v1/grants/{grant['id']}")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        vault.vault.trouble = None
        # Not before the breaker looks again. Each look is answered, so this waits on the proxy and not on the clock.
        async with asyncio.timeout(20):
            while (await readiness(running))[0] == 503:
                pass


async def test_it_starts_and_ends_in_time_without_its_vault(tmp_path: Path, vault: Running) -> None:
    await bootstrap(vault)
    vault.vault.trouble = "sealed"
    async with proxy(tmp_path, environ=environ(vault)) as running:
        assert (await readiness(running))[0] == 503
        await running.grant("sesn_1", vault_ids=["vlt_1"])
        assert await running.stop() == 0


async def test_a_dead_token_is_told(tmp_path: Path, vault: Running) -> None:
    await bootstrap(vault)
    async with proxy(tmp_path, environ={**environ(vault), "VAULT_TOKEN": "s.dead"}) as running:
        status, reason = await readiness(running)
        assert status == 503
        assert reason
        assert "s.dead" not in reason
