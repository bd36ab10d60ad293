"""`galley serve` as a process: how it starts, what keeps it from starting, how it ends."""

import asyncio
import signal
import socket
import stat
import time
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.server_process import refused, served

pytestmark = pytest.mark.anyio


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_it_answers_as_soon_as_it_says_that_it_is_ready(tmp_path: Path) -> None:
    async with served(tmp_path / "home") as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/agents", headers=server.headers)).status_code == 200
        assert (await client.get("/v1/agents")).status_code == 401


async def test_everything_in_the_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with served(tmp_path / "home") as server:
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [server.home, *server.home.rglob("*")]}
    assert {path for path, mode in modes.items() if mode & 0o077} == set()
    assert modes[tmp_path / "home" / "galley.db"] == 0o600


async def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = await refused(tmp_path, "--port", str(port))
    assert status == 2
    assert said.startswith(f"galley: cannot listen on 127.0.0.1 port {port}:")
    assert len(said.splitlines()) == 1


async def test_a_second_server_of_a_home_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    async with served(tmp_path) as first:
        status, said = await refused(tmp_path, "--port", "0")
        assert first.process.returncode is None
    assert status == 2
    assert f"another server (process {first.process.pid}) already runs" in said


async def test_a_model_endpoint_that_is_the_server_itself_is_refused_by_name(tmp_path: Path) -> None:
    port = free_port()
    status, said = await refused(
        tmp_path, "--port", str(port), GALLEY_MODEL_API_KEY="k", GALLEY_MODEL_BASE_URL=f"http://localhost:{port}"
    )
    assert status == 2
    assert "this Galley server itself: set GALLEY_MODEL_BASE_URL" in said


async def test_a_misspelt_setting_keeps_it_from_starting(tmp_path: Path) -> None:
    status, said = await refused(tmp_path, GALLEY_SANDBOKS="docker")
    assert (status, said) == (2, "galley: GALLEY_SANDBOKS is not a setting of Galley: did you mean GALLEY_SANDBOX?\n")


async def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, said = await refused(tmp_path / "file" / "home")
    assert status == 2
    assert said.startswith("galley: GALLEY_HOME ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_within_5_s_with_streams_open(tmp_path: Path, number: signal.Signals) -> None:
    async with served(tmp_path) as server, httpx2.AsyncClient(base_url=server.url, headers=server.headers) as client:
        environment = (await client.post("/v1/environments", json={"name": "plain"})).json()["id"]
        agent = (await client.post("/v1/agents", json={"name": "cook", "model": "scripted-1"})).json()["id"]
        session = (await client.post("/v1/sessions", json={"agent": agent, "environment_id": environment})).json()["id"]
        async with client.stream("GET", f"/v1/sessions/{session}/events/stream", timeout=10) as stream:
            assert stream.status_code == 200
            began = time.monotonic()
            server.process.send_signal(number)
            async for _ in stream.aiter_raw():
                pass
            assert await asyncio.wait_for(server.process.wait(), 10) == 0
            assert time.monotonic() - began < 5
        assert "Traceback" not in server.errors


async def test_a_detached_server_ends_by_itself_when_nobody_needs_it(tmp_path: Path) -> None:
    async with served(tmp_path, "--detached", "0.2", "--port", "0") as server:
        assert await asyncio.wait_for(server.process.wait(), 20) == 0
        assert not (tmp_path / "run" / "galley.sock").exists()


async def test_a_detached_server_stays_while_a_client_is_connected(tmp_path: Path) -> None:
    async with served(tmp_path, "--detached", "0.2", "--port", "0") as server:
        _, client = await asyncio.open_unix_connection(tmp_path / "run" / "galley.sock")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.process.wait(), 1.5)
        client.close()
        assert await asyncio.wait_for(server.process.wait(), 20) == 0


async def test_a_detached_server_takes_another_port_when_the_usual_one_is_taken(tmp_path: Path) -> None:
    async with served(tmp_path / "one", "--detached", "30") as one, served(tmp_path / "two", "--detached", "30") as two:
        assert one.url != two.url
