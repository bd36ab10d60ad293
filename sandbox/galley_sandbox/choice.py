"""Which driver a server uses: the one that was asked for, or the first that really ran something."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.errors import SandboxUnavailable
from galley_sandbox.port import Driver, LimitStatus, Probe, Sandbox, Spec

if TYPE_CHECKING:
    from galley_sandbox.docker.driver import Docker

Setting = Literal["auto", "docker", "bubblewrap"]
DEFAULT_ENGINE = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Options:
    """What the drivers are made from."""

    root: Path
    """A folder of this home for the state of its sandboxes."""
    home_id: str
    engine_url: str = DEFAULT_ENGINE
    image: str | None = None
    runtime: str | None = None
    idle_exit_s: float = 900.0


def choose(setting: Setting, options: Options) -> Driver:
    """The driver for a setting. Nothing is probed or started here: that happens at its first use."""
    if setting == "bubblewrap":
        return _bubblewrap(options)
    if setting == "docker":
        return _docker(options)
    return Automatic(options)


def _bubblewrap(options: Options) -> Bubblewrap:
    return Bubblewrap(options.root, options.home_id, idle_exit_s=options.idle_exit_s)


def _docker(options: Options) -> "Docker":
    # Imported when it is needed: the engine's library takes a fifth of a second, which a server's start does not have.
    from galley_sandbox.docker.driver import Docker
    from galley_sandbox.docker.image import DEFAULT_IMAGE

    return Docker(
        options.home_id,
        url=options.engine_url,
        image_name=options.image or DEFAULT_IMAGE,
        runtime=options.runtime,
        idle_exit_s=options.idle_exit_s,
    )


class Automatic:
    """Docker if a container really ran, else bubblewrap if that did; found out once, at the first use.

    If neither works, provisioning says why and how to change that, and asks anew the next time.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._bubblewrap = _bubblewrap(options)
        self._docker: Docker | None = None
        self._chosen: tuple[Driver, Probe] | None = None
        self._choosing = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._chosen[0].name if self._chosen else "auto"

    async def probe(self) -> Probe:
        return (await self._choice())[1]

    async def provision(self, spec: Spec) -> Sandbox:
        driver, _ = await self._choice()
        return await driver.provision(spec)

    async def adopt(self) -> list[Sandbox]:
        """What either left: the choice may have been another one before the restart."""
        found: list[Sandbox] = []
        for driver in await self._both():
            with suppress(SandboxUnavailable):
                found += await driver.adopt()
        return found

    async def destroy(self, sandbox_id: str) -> None:
        for driver in await self._both():
            with suppress(SandboxUnavailable):
                await driver.destroy(sandbox_id)

    async def limits_report(self) -> list[LimitStatus]:
        return await (await self._choice())[0].limits_report()

    async def close(self) -> None:
        for driver in await self._both():
            await driver.close()

    async def _both(self) -> list[Driver]:
        async with self._choosing:
            docker = await self._made_docker()
        return [self._bubblewrap] if docker is None else [docker, self._bubblewrap]

    async def _made_docker(self) -> "Docker | None":
        """None where there is no engine to speak of: then not even its library is loaded."""
        if self._docker is None:
            address = urlsplit(self._options.engine_url)
            if address.scheme == "unix" and not await asyncio.to_thread(Path(address.path).is_socket):
                return None
            self._docker = await asyncio.to_thread(_docker, self._options)
        return self._docker

    async def _choice(self) -> tuple[Driver, Probe]:
        async with self._choosing:
            if self._chosen is None:
                self._chosen = await self._choose()
            return self._chosen

    async def _choose(self) -> tuple[Driver, Probe]:
        refusals: list[str] = []
        docker = await self._made_docker()
        image_missing = False
        if docker is None:
            refusals.append("Docker: no engine is running here.")
        else:
            try:
                if await docker.image_is_here():
                    return docker, await docker.probe()
                image_missing = True
            except SandboxUnavailable as e:
                refusals.append(f"Docker: {e.message}")
        try:
            return self._bubblewrap, await self._bubblewrap.probe()
        except SandboxUnavailable as e:
            refusals.append(f"bubblewrap: {e.message}")
        if docker is not None and image_missing:
            # The slow way, taken last: the image has to be built or pulled first.
            try:
                return docker, await docker.probe()
            except SandboxUnavailable as e:
                refusals.insert(0, f"Docker: {e.message}")
        raise SandboxUnavailable(
            f"Neither Docker nor bubblewrap can start a sandbox here. {' '.join(refusals)}",
            fix="apt-get install bubblewrap (dnf install bubblewrap on Fedora), or install Docker and start it",
        )
