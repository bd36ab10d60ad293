"""The vault proxy as a child of the server: it comes and goes with it, and gets nothing that it does not need."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import psutil
import pytest
from galley_server.broker.child import Child, serve_command
from galley_server.broker.place import Sockets, greeting
from galley_server.errors import Unavailable
from galley_server.secret import Secret
from galley_vault_proxy.preamble import greeting as proxys_greeting
from galley_vault_proxy.secret import Secret as ProxySecret

from tests.acceptance.server_process import refused, served
from tests.integration.broker_kit import house, proxy_of, until

pytestmark = pytest.mark.anyio


def sync(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return condition()

    return check


async def test_it_listens_on_sockets_only_and_its_arguments_hold_no_key(tmp_path: Path) -> None:
    async with served(tmp_path / "home", GALLEY_BROKER="auto") as server:
        await until(sync(lambda: (server.home / "run" / "proxy.sock").is_socket()))
        proxy = proxy_of(server.process.pid)
        assert proxy is not None
        assert [one for one in proxy.net_connections("inet") if one.status == "LISTEN"] == []
        key = (server.home / "vault_proxy" / "service_key").read_text().strip()
        assert key not in " ".join(proxy.cmdline())


async def test_it_is_not_told_the_keys_of_the_server_and_of_the_model(tmp_path: Path) -> None:
    keys = {
        "GALLEY_API_KEY": "the-clients-key-0001",
        "ANTHROPIC_API_KEY": "the-models-key-0001",
        "GALLEY_MODEL_API_KEY": "the-models-key-0002",
        "ANTHROPIC_AUTH_TOKEN": "the-models-key-0003",
    }
    more = {"GALLEY_PROXY_CACHE_TTL_S": "7", "GALLEY_VAULT_KV_MOUNT": "kv"}
    async with served(tmp_path / "home", GALLEY_BROKER="auto", **keys, **more) as server:
        await until(sync(lambda: proxy_of(server.process.pid) is not None))
        proxy = proxy_of(server.process.pid)
        assert proxy is not None
        found = proxy.environ()
        assert not any(value in " ".join(found.values()) for value in keys.values())
        assert {name: found[name] for name in more} == more


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_it_is_gone_when_the_server_is_however_that_ended(tmp_path: Path, number: int) -> None:
    async with served(tmp_path / "home", GALLEY_BROKER="auto") as server:
        await until(sync(lambda: (server.home / "run" / "proxy.sock").is_socket()))
        proxy = proxy_of(server.process.pid)
        assert proxy is not None
        server.process.send_signal(number)
        await server.process.wait()
        await until(sync(lambda: not proxy.is_running() or proxy.status() == psutil.STATUS_ZOMBIE))


async def test_a_server_ends_in_time_though_its_proxy_does_not(tmp_path: Path) -> None:
    async with served(tmp_path / "home", GALLEY_BROKER="auto") as server:
        await until(sync(lambda: (server.home / "run" / "proxy.sock").is_socket()))
        proxy = proxy_of(server.process.pid)
        assert proxy is not None
        proxy.suspend()
        assert await server.stop(within_s=10) in (0, 1)
        await until(sync(lambda: not proxy.is_running() or proxy.status() == psutil.STATUS_ZOMBIE))


async def test_what_it_cannot_start_with_is_told_to_whoever_needs_it(tmp_path: Path) -> None:
    async with house(tmp_path, environ={"GALLEY_PROXY_CACHE_TTL_S": "never"}) as galley, galley.http() as http:
        answer = await http.get("/v1/vaults")
        assert answer.status_code == 503
        assert "GALLEY_PROXY_CACHE_TTL_S" in answer.json()["error"]["message"]
        # The rest of the server works.
        assert (await http.get("/v1/agents")).status_code == 200


async def test_one_that_keeps_dying_is_told_of_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galley_server.broker.child._AGAIN_S", (0.01, 0.01))
    healthy = tmp_path / "healthy"
    program = (
        f"import os, sys, time\nif not os.path.exists({str(healthy)!r}): sys.exit('no luck')\n"
        "print('galley-vault-proxy ready x', flush=True); sys.stdin.read()"
    )
    monkeypatch.setattr("galley_server.broker.child.serve_command", lambda _: [sys.executable, "-c", program])
    async with asyncio.timeout(20), Child.open(Sockets.within(tmp_path), dict(os.environ)) as child:
        child.begin("http://localhost")
        with pytest.raises(Unavailable, match="no luck"):
            await child.ready(10)
        healthy.touch()
        while True:
            try:
                await child.ready(10)
                break
            except Unavailable:
                await asyncio.sleep(0.01)


def test_a_tunnel_is_announced_as_the_proxy_reads_it() -> None:
    assert greeting(Secret("service-key-012345"), "sesn_1") == proxys_greeting(
        ProxySecret("service-key-012345"), "sesn_1"
    )


async def test_a_proxy_that_runs_by_itself_is_used_as_it_is(tmp_path: Path) -> None:
    sockets = tmp_path / "sockets"
    sockets.mkdir(mode=0o700)
    key = "a-shared-service-key-01"
    environ = {**os.environ, "GALLEY_PROXY_HOME": str(tmp_path / "proxy"), "GALLEY_PROXY_KEY": key}
    process = await asyncio.create_subprocess_exec(
        *serve_command(Sockets.within(sockets)),
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        settings = {"GALLEY_BROKER": str(sockets), "GALLEY_PROXY_KEY": key}
        async with house(tmp_path, environ=settings) as galley:
            vault = await galley.client.beta.vaults.create(display_name="Alice")
            transport = httpx2.AsyncHTTPTransport(uds=str(sockets / "proxy.sock"))
            headers = {"x-api-key": key}
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as proxy:
                assert (await proxy.get(f"/v1/vaults/{vault.id}")).status_code == 200
            assert not (galley.home / "vault_proxy").exists()
    finally:
        process.terminate()
        await process.wait()


async def test_a_proxy_that_runs_by_itself_needs_its_key(tmp_path: Path) -> None:
    status, errors = await refused(tmp_path / "home", GALLEY_BROKER=str(tmp_path))
    assert (status, "GALLEY_PROXY_KEY" in errors) == (2, True)
