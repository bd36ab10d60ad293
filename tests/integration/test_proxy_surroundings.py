"""What a deployment tells the proxy about its surroundings: its own name, and whose certificates upstreams have."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from tests.integration.proxy_kit import clean_environment, proxy

pytestmark = pytest.mark.anyio


async def egress_url(home: Path, **environ: str) -> str:
    async with proxy(home, environ=environ) as running, running.client() as client:
        return str((await client.get("/v1/egress")).json()["url"])


async def test_sandboxes_are_sent_to_the_egress_door_by_the_name_that_leads_to_the_proxy(tmp_path: Path) -> None:
    assert (await egress_url(tmp_path)).startswith("http://127.0.0.1:")
    named = await egress_url(tmp_path, GALLEY_PROXY_URL="https://broker.example:9443")
    assert named.startswith("http://broker.example:")
    assert named != "http://broker.example:9443"


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_authorities_that_cannot_be_read_keep_it_from_starting(tmp_path: Path, content: str | None) -> None:
    """Rather than from reaching anything later."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "galley_vault_proxy", "serve", "--port", "0", "--egress-port", "0"),
        env={**clean_environment(), "GALLEY_PROXY_HOME": str(tmp_path / "home"), "SSL_CERT_FILE": str(file)},
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    async with asyncio.timeout(30):
        said = (await process.communicate())[1].decode()
    assert process.returncode == 2, said
    assert said.startswith("galley-vault-proxy: SSL_CERT_FILE: the certificate authorities cannot be read")
