"""What a runner of sandboxes is given: a grant kept alive in a folder, a tunnel, the commands of the guide."""

import asyncio
import os
import re
import signal
import stat
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import httpx2
import pytest
from galley_vault_proxy.preamble import greeting
from galley_vault_proxy.secret import Secret

from tests.integration.proxy_kit import KEY, proxy
from tests.integration.runner_kit import FOLDER, Broker, broker, forwarding, keeping

pytestmark = pytest.mark.anyio

CANARY = "canary-5f21-of-the-broker"
UP = {"name": "up", "url": "http://127.0.0.1:9/mcp"}


async def knocks(token: str, *, url: str = "http://proxy", uds: Path | None = None) -> int:
    """The MCP door's status for a grant: 401 if it does not count."""
    transport = None if uds is None else httpx2.AsyncHTTPTransport(uds=str(uds))
    async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=20) as client:
        answer = await client.delete(f"{url}/mcp/up", headers={"authorization": f"Bearer {token}", "host": "localhost"})
    return answer.status_code


async def stored(at: Broker, value: str) -> str:
    """A vault with one credential for an environment."""
    async with at.proxy.client() as client:
        vault = str((await client.post("/v1/vaults", json={"display_name": "v"})).json()["id"])
        auth = {
            "type": "environment_variable",
            "secret_name": "API_TOKEN",
            "secret_value": value,
            "networking": {"type": "limited", "allowed_hosts": ["api.example.com"]},
        }
        assert (await client.post(f"/v1/vaults/{vault}/credentials", json={"auth": auth})).status_code == 200
    return vault


async def test_a_sandbox_is_supplied_with_what_it_needs_and_no_secret(tmp_path: Path) -> None:
    async with broker(tmp_path) as at:
        request = at.request(vault_ids=[await stored(at, CANARY)], mcp_servers=[UP])
        async with keeping(at, request, "--seen-as", "/run/it") as keeper:
            await keeper.says("a grant for")
            files = {path.name: path for path in at.sandbox.iterdir()}
            assert set(files) == {"token", "environment", "ca.pem", "ca-bundle.pem"}
            assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
            assert all(secret not in path.read_text() for path in files.values() for secret in (CANARY, KEY))
            seen = await variables(files["environment"])
            assert seen["API_TOKEN"].startswith("galley_placeholder_")
            assert seen["GALLEY_MCP_URL"] == f"{at.proxy.url}/mcp"
            assert seen["GALLEY_TOKEN_FILE"] == "/run/it/token"
            assert seen["SSL_CERT_FILE"] == "/run/it/ca-bundle.pem"
            assert at.token() in seen["HTTPS_PROXY"]
            assert files["ca-bundle.pem"].read_text().endswith(files["ca.pem"].read_text())


async def variables(environment: Path) -> dict[str, str]:
    """What a container's first shell makes of it."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", '. "$1"; env', "sh", str(environment), stdout=PIPE, env={"PATH": os.environ["PATH"]}
    )
    said, _ = await process.communicate()
    return dict(line.split("=", 1) for line in said.decode().splitlines())


async def test_a_grant_is_renewed_in_place_before_it_ends(tmp_path: Path) -> None:
    async with broker(tmp_path) as at, keeping(at, at.request(mcp_servers=[UP], expires_in=8)) as keeper:
        await keeper.says("a grant for")
        first = at.token()
        await keeper.says("a grant for")
        assert at.token() != first
        assert await knocks(at.token(), url=at.proxy.url) != 401


async def test_the_session_ends_with_whoever_keeps_it(tmp_path: Path) -> None:
    async with broker(tmp_path) as at, keeping(at, at.request(mcp_servers=[UP])) as keeper:
        await keeper.says("a grant for")
        assert await knocks(at.token(), url=at.proxy.url) != 401
        assert await keeper.end() == 0
        assert await knocks(at.token(), url=at.proxy.url) == 401


async def test_a_broker_that_is_away_is_asked_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with broker(tmp_path) as at, keeping(at, at.request(mcp_servers=[UP], expires_in=6)) as keeper:
        await keeper.says("a grant for")
        port = at.proxy.url.rpartition(":")[2]
        assert await at.proxy.stop() == 0
        await keeper.says("not renewed, trying again|no grant")
        async with proxy(home, "--port", port) as again:
            await keeper.says("a grant for")
            assert await knocks(at.token(), url=again.url) != 401
            assert await keeper.end() == 0


async def test_what_the_broker_refuses_is_told(tmp_path: Path) -> None:
    async with broker(tmp_path) as at, keeping(at, at.request(hosts=[{"host": "https://x"}]), "--once") as keeper:
        assert "400" in await keeper.says("/v1/grants")


async def test_a_grant_counts_on_its_tunnel_alone(tmp_path: Path) -> None:
    async with broker(tmp_path) as at:
        request = at.request(mcp_servers=[UP], tunnel="tun_a")
        async with keeping(at, request, "--greeting", str(at.greeting)) as keeper:
            await keeper.says("a grant for")
            assert at.greeting.read_bytes() == greeting(Secret(KEY), "tun_a")
            (tmp_path / "other").write_bytes(greeting(Secret(KEY), "tun_b"))
            assert await through_a_tunnel(at, "--greeting", str(at.greeting)) != 401
            assert await through_a_tunnel(at, "--greeting", str(tmp_path / "other")) == 401
            assert await through_a_tunnel(at) == 401


async def through_a_tunnel(at: Broker, *words: str) -> int:
    way = at.folder / "mcp.sock"
    async with forwarding(*words, f"{way}={at.sockets[0]}", waits_for=[way]):
        return await knocks(at.token(), uds=way)


async def test_the_inner_end_runs_a_command_and_ends_as_it_does(tmp_path: Path) -> None:
    async with broker(tmp_path) as at:
        port = await free_port()
        for script, status in (("exit 7", 7), ("kill -9 $$", 137), (f"(: < /dev/tcp/127.0.0.1/{port})", 0)):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(FOLDER / "forward.py"), f"{port}={at.sockets[0]}", "--", "bash", "-c", script),
                stdin=DEVNULL,
            )
            async with asyncio.timeout(30):
                assert await process.wait() == status


async def test_a_tunnel_ends_when_it_is_told_and_takes_its_command_along(tmp_path: Path) -> None:
    way = tmp_path / "way.sock"
    words = (f"{way}={tmp_path / 'nobody.sock'}", "--", "sleep", "600")
    async with forwarding(*words, waits_for=[way]) as process:
        # Nobody is at the other end, and then a connection just ends.
        reader, writer = await asyncio.open_unix_connection(way)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 128 + signal.SIGTERM


async def free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    return port


async def test_the_commands_of_the_guide_do_what_it_says(tmp_path: Path) -> None:
    guide = (FOLDER / "README.md").read_text()
    (commands,) = [block for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "$BROKER" in block]
    (request,) = re.findall(r"```json\n(.*?)```", guide, re.DOTALL)
    async with broker(tmp_path) as at:
        (tmp_path / "request.json").write_text(request)
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", commands),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "BROKER": at.proxy.url},
            stdout=PIPE,
            stderr=STDOUT,
        )
        async with asyncio.timeout(60):
            said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert '"token"' in said
    assert "BEGIN CERTIFICATE" in said
    assert '"revoked_grants":1' in said.replace(" ", "")
    assert KEY not in said
    assert stat.S_IMODE((tmp_path / "header").stat().st_mode) == 0o600


async def test_grants_end_with_their_key_and_outlive_the_service_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with proxy(home) as first:
        token = (await first.grant(mcp_servers=[UP]))["token"]
        assert await first.stop() == 0
    async with proxy(home, environ={"GALLEY_PROXY_KEY": "another-service-key-0123"}) as second:
        assert await knocks(token, url=second.url) != 401
        assert await second.stop() == 0
    (home / "grant_key").unlink()
    async with proxy(home) as third:
        assert await knocks(token, url=third.url) == 401
