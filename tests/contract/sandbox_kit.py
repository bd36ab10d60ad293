"""What the tests of sandboxes share: a driver of each kind, a sandbox, a hand, and ways to use it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import count
from pathlib import Path

import docker
import pytest
from blockbuster import blockbuster_ctx
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker
from galley_sandbox.errors import SandboxLost
from galley_sandbox.port import JSON, Driver, Hand, Limits, MiB, Sandbox, Spec, ToolResult, Unknown

LIMITS = Limits(
    memory_bytes=192 * MiB, cpus=2, pids=48, disk_bytes=32 * MiB, wall_s=30, output_bytes=2 * MiB, cpu_s=120
)
COUNT = (
    "echo x >> /workspace/count; touch /workspace/started; until [ -e /workspace/go ]; do sleep 0.01; done; echo done"
)


def home_of(folder: Path) -> str:
    """A home of its own for each test, so that tests do not adopt what others have running."""
    return f"home_contract_test_{folder.name}"


def make_driver(backend: str, root: Path, *, home_id: str, idle_exit_s: float = 120) -> Driver:
    if backend == "bubblewrap":
        return Bubblewrap(root, home_id, idle_exit_s=idle_exit_s)
    return Docker(home_id, idle_exit_s=idle_exit_s)


@pytest.fixture(
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("galley_sandbox"):
        yield


@pytest.fixture
async def driver(backend: str, tmp_path: Path, nothing_blocks_the_loop: None) -> AsyncIterator[Driver]:
    driver = make_driver(backend, tmp_path / "sandboxes", home_id=home_of(tmp_path))
    yield driver
    for sandbox in await driver.adopt():
        await driver.destroy(sandbox.id)
    await driver.close()


@pytest.fixture
async def sandbox(driver: Driver) -> AsyncIterator[Sandbox]:
    sandbox = await driver.provision(Spec("sesn_contract", LIMITS))
    yield sandbox
    await driver.destroy(sandbox.id)


@pytest.fixture
async def hand(sandbox: Sandbox) -> AsyncIterator[Hand]:
    async with sandbox.connect() as hand:
        yield hand


_serial = count()


async def use(hand: Hand, tool: str, input: Mapping[str, JSON], *, shell: str = "main") -> ToolResult:
    call_id = f"sevt_{next(_serial)}"
    async with asyncio.timeout(60):
        result = await hand.call(call_id, tool, input, shell=shell)
        await hand.acknowledge(call_id)
    return result


async def bash(hand: Hand, command: str, *, shell: str = "main", timeout_ms: int = 20_000) -> ToolResult:
    return await use(hand, "bash", {"command": command, "timeout_ms": timeout_ms}, shell=shell)


async def until(hand: Hand, condition: str) -> None:
    """Wait, inside the sandbox, until a shell condition holds."""
    result = await bash(hand, f"until {condition}; do sleep 0.01; done", shell="watch", timeout_ms=10_000)
    assert not result.is_error, result.text


async def accepted(hand: Hand, call_id: str) -> None:
    """Each question is a round trip, so this leaves room for everything else."""
    async with asyncio.timeout(10):
        state = await hand.query(call_id)
        while state == Unknown():
            state = await hand.query(call_id)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def outcome(hand: Hand, call_id: str, command: str) -> ToolResult | SandboxLost:
    try:
        return await hand.call(call_id, "bash", {"command": command})
    except SandboxLost as e:
        return e


async def hand_process(backend: str, sandbox: Sandbox, root: Path) -> int:
    """The host's number of the hand's process."""
    if backend == "bubblewrap":
        state = json.loads((root / sandbox.id / "state.json").read_text())
        return int(state["process"]["pid"])
    client = await asyncio.to_thread(docker.from_env)
    try:
        details = await asyncio.to_thread(client.api.inspect_container, sandbox.id)
    finally:
        client.close()
    return int(details["State"]["Pid"])
