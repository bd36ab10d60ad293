"""What is particular to sandboxes in an engine: freezing, foreign images, engines that are not there."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import docker
import pytest
from docker import DockerClient
from galley_sandbox.docker import image
from galley_sandbox.docker.driver import Docker
from galley_sandbox.docker.engine import Engine
from galley_sandbox.errors import SandboxUnavailable
from galley_sandbox.port import Limits, MiB, Spec

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

FOREIGN = {"Entrypoint": ["/bin/false"], "User": "4321", "WorkingDir": "/x"}
LIMITS = Limits(memory_bytes=128 * MiB, pids=32, disk_bytes=16 * MiB, wall_s=30)


@pytest.fixture
def home_id(tmp_path: Path) -> str:
    return f"home_docker_test_{tmp_path.name}"


@pytest.fixture
def engine_client() -> DockerClient:
    return docker.from_env()


@pytest.fixture
async def driver(engine_client: DockerClient, home_id: str) -> AsyncIterator[Docker]:
    with closing(engine_client):
        driver = Docker(home_id)
        yield driver
        for sandbox in await driver.adopt():
            await driver.destroy(sandbox.id)
        await driver.close()


async def test_a_frozen_container_is_thawed_before_it_is_talked_to(
    driver: Docker, engine_client: DockerClient, home_id: str
) -> None:
    sandbox = await driver.provision(Spec("sesn_1", LIMITS))
    await asyncio.to_thread(engine_client.api.pause, sandbox.id)
    later = Docker(home_id)
    (adopted,) = await later.adopt()
    assert adopted.incarnation == sandbox.incarnation
    await asyncio.to_thread(engine_client.api.pause, sandbox.id)
    async with sandbox.connect() as hand:
        assert (await hand.call("c", "bash", {"command": "echo thawed"})).text == "thawed"
    await later.close()


async def test_a_stopped_container_is_removed_and_not_adopted(driver: Docker, engine_client: DockerClient) -> None:
    sandbox = await driver.provision(Spec("sesn_1", LIMITS))
    await asyncio.to_thread(engine_client.api.kill, sandbox.id)
    assert await driver.adopt() == []
    with pytest.raises(docker.errors.NotFound):
        await asyncio.to_thread(engine_client.api.inspect_container, sandbox.id)


async def test_the_container_has_no_more_than_it_needs(driver: Docker, engine_client: DockerClient) -> None:
    sandbox = await driver.provision(Spec("sesn_1", LIMITS))
    details = await asyncio.to_thread(engine_client.api.inspect_container, sandbox.id)
    host = details["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert set(host["CapAdd"]) == {"SETUID", "SETGID", "KILL"}
    assert (host["Memory"], host["MemorySwap"]) == (LIMITS.memory_bytes, LIMITS.memory_bytes)
    assert (host["PidsLimit"], host["NanoCpus"]) == (48, 2_000_000_000)
    assert not host["Privileged"]
    assert [mount["RW"] for mount in details["Mounts"]] == [False]


async def test_the_hand_works_in_an_image_that_was_not_made_for_it(
    driver: Docker, engine_client: DockerClient, home_id: str
) -> None:
    """The image has an entry point, a user and a working directory of its own, and none of them matters."""

    def commit() -> None:
        made = engine_client.containers.create(image.DEFAULT_IMAGE, entrypoint=["false"])
        try:
            made.commit("galley-test-foreign", "1", conf=FOREIGN)
        finally:
            made.remove()

    assert (await driver.probe()).driver == "docker"
    await asyncio.to_thread(commit)
    foreign = Docker(home_id, image_name="galley-test-foreign:1")
    try:
        assert "galley-test-foreign:1" in (await foreign.probe()).detail
    finally:
        await foreign.close()
        await asyncio.to_thread(engine_client.images.remove, "galley-test-foreign:1")


async def test_an_image_without_python_is_named_with_the_fix(
    driver: Docker, engine_client: DockerClient, home_id: str
) -> None:
    empty = await asyncio.to_thread(
        engine_client.api.import_image_from_data, bytes(10240), repository="galley-test-empty", tag="1"
    )
    assert empty
    bare = Docker(home_id, image_name="galley-test-empty:1")
    try:
        with pytest.raises(SandboxUnavailable, match="python3") as failure:
            await bare.provision(Spec("sesn_1", LIMITS))
        assert "python3 (3.8 or newer) and bash" in failure.value.fix
        assert await bare.adopt() == []
    finally:
        await bare.close()
        await asyncio.to_thread(engine_client.images.remove, "galley-test-empty:1")


async def test_an_image_that_cannot_be_had_is_named_with_the_command(driver: Docker, home_id: str) -> None:
    absent = Docker(home_id, image_name="localhost:1/galley-no-such-image:7")
    try:
        with pytest.raises(SandboxUnavailable) as failure:
            await absent.provision(Spec("sesn_1", LIMITS))
    finally:
        await absent.close()
    assert failure.value.fix == "docker pull localhost:1/galley-no-such-image:7"


async def test_files_pruned_from_the_engine_are_laid_out_again(driver: Docker, engine_client: DockerClient) -> None:
    sandbox = await driver.provision(Spec("sesn_1", LIMITS))
    await driver.destroy(sandbox.id)
    volume = f"galley-test-pruned-{sandbox.id}"
    await asyncio.to_thread(engine_client.volumes.create, volume)
    driver._volume = volume  # an empty one, as the engine itself makes when the real one is gone
    again = await driver.provision(Spec("sesn_1", LIMITS))
    async with again.connect() as hand:
        assert (await hand.call("c", "bash", {"command": "echo here"})).text == "here"
    await asyncio.to_thread(engine_client.api.remove_volume, volume)


@pytest.mark.parametrize("runtime", ["no-such-runtime"])
async def test_an_unknown_runtime_is_told_by_the_engine(driver: Docker, home_id: str, runtime: str) -> None:
    other = Docker(home_id, runtime=runtime)
    try:
        with pytest.raises(SandboxUnavailable, match="no-such-runtime"):
            await other.provision(Spec("sesn_1", LIMITS))
    finally:
        await other.close()


async def test_without_an_engine_it_says_so_at_once(tmp_path: Path) -> None:
    driver = Docker("home_x", url=f"unix://{tmp_path}/absent.sock")
    async with asyncio.timeout(5):
        with pytest.raises(SandboxUnavailable, match="there is no engine's socket at") as failure:
            await driver.probe()
        with pytest.raises(SandboxUnavailable):
            await driver.adopt()
    assert "install Docker and start it" in failure.value.fix
    await driver.close()


async def test_an_address_it_cannot_use_is_refused_by_name() -> None:
    engine = Engine("ssh://somewhere")
    with pytest.raises(SandboxUnavailable, match="neither unix:// nor tcp://"):
        await image.has_image(engine, "x")


async def test_something_else_at_the_engines_address_is_not_an_engine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        driver = Docker("home_x", url=f"unix://{tmp_path}/other.sock")

        def answer() -> None:
            for _ in ("the knock", "the question"):
                stream, _ = listener.accept()
                with stream:
                    if stream.recv(4096):
                        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(answer))
            with pytest.raises(SandboxUnavailable):
                await driver.probe()
        await driver.close()


def test_the_recipe_names_what_the_hand_needs() -> None:
    assert {"python3", "bash", "ripgrep", "ca-certificates", "git"} <= set(image.packages())
