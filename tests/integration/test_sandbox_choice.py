"""Which driver is used: what really ran something, and never none at all."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest
from galley_sandbox.choice import DEFAULT_ENGINE, Options, Setting, choose
from galley_sandbox.errors import SandboxUnavailable
from galley_sandbox.port import Limits, MiB, Spec

pytestmark = pytest.mark.anyio

SMALL = Spec("sesn_choice", Limits(memory_bytes=128 * MiB, disk_bytes=16 * MiB, pids=32))


def options(tmp_path: Path, *, engine: bool) -> Options:
    url = DEFAULT_ENGINE if engine else f"unix://{tmp_path}/absent.sock"
    return Options(root=tmp_path / "sandboxes", home_id=f"home_choice_{tmp_path.name}", engine_url=url)


@pytest.mark.bubblewrap
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not on this machine")
async def test_without_an_engine_bubblewrap_is_chosen(tmp_path: Path) -> None:
    driver = choose("auto", options(tmp_path, engine=False))
    assert driver.name == "auto"
    assert (await driver.probe()).driver == driver.name == "bubblewrap"
    await driver.close()


@pytest.mark.docker
@pytest.mark.skipif(not Path("/var/run/docker.sock").is_socket(), reason="docker is not on this machine")
async def test_an_engine_that_runs_containers_is_preferred(tmp_path: Path) -> None:
    explicit = choose("docker", options(tmp_path, engine=True))
    assert (await explicit.probe()).driver == "docker"
    driver = choose("auto", options(tmp_path, engine=True))
    assert (await driver.probe()).driver == driver.name == "docker"
    sandbox = await driver.provision(SMALL)
    (adopted,) = await driver.adopt()
    assert adopted.incarnation == sandbox.incarnation
    await driver.destroy(sandbox.id)
    await driver.close()
    await explicit.close()


@pytest.mark.bubblewrap
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not on this machine")
async def test_what_another_choice_left_is_adopted_and_destroyed_too(tmp_path: Path) -> None:
    chosen = options(tmp_path, engine=False)
    sandbox = await choose("bubblewrap", chosen).provision(SMALL)
    driver = choose("auto", Options(chosen.root, chosen.home_id))
    assert [adopted.id for adopted in await driver.adopt()] == [sandbox.id]
    await driver.destroy(sandbox.id)
    assert await driver.adopt() == []
    await driver.close()


async def test_with_neither_every_start_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = choose("auto", options(tmp_path, engine=False))
    for _ in range(2):
        with pytest.raises(SandboxUnavailable, match=r"no engine is running here.*not installed") as failure:
            await driver.provision(SMALL)
        assert "apt-get install bubblewrap" in failure.value.fix
    assert await driver.adopt() == []
    await driver.destroy("sbx_whatever")
    await driver.close()


@pytest.mark.parametrize("setting", ["auto", "docker", "bubblewrap"])
def test_choosing_touches_nothing(tmp_path: Path, setting: Setting) -> None:
    choose(setting, options(tmp_path, engine=False))
    assert list(tmp_path.iterdir()) == []


async def test_the_engines_library_is_loaded_only_where_an_engine_is(tmp_path: Path) -> None:
    program = (
        "import sys, asyncio; from pathlib import Path; from galley_sandbox.choice import *\n"
        "driver = choose('auto', Options(Path(sys.argv[1]), 'home', engine_url='unix:///nowhere.sock'))\n"
        "asyncio.run(driver.adopt()); print('docker' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "sandboxes"), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out == b"False\n"
