"""Which sandbox drivers a home uses, in which order. Opening them starts nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker
from galley_sandbox.docker.engine import DEFAULT_URL
from galley_sandbox.docker.image import DEFAULT_IMAGE
from galley_sandbox.port import Driver, Limits

from galley_server.settings import MEBIBYTE, SandboxSettings
from galley_server.state import StateFiles


@asynccontextmanager
async def open_drivers(settings: SandboxSettings, files: StateFiles, home_id: str) -> AsyncIterator[tuple[Driver, ...]]:
    """The drivers to try, the preferred one first. Sandboxes outlive them."""
    bubblewrap = Bubblewrap(files.sandboxes, home_id)
    if settings.choice == "bubblewrap":
        yield (bubblewrap,)
        return
    docker = Docker(
        home_id,
        url=settings.engine or DEFAULT_URL,
        image_name=settings.image or DEFAULT_IMAGE,
        runtime=settings.runtime,
    )
    try:
        yield (docker,) if settings.choice == "docker" else (docker, bubblewrap)
    finally:
        await docker.close()


def limits_of(settings: SandboxSettings) -> Limits:
    return Limits(
        memory_bytes=settings.memory_mb * MEBIBYTE,
        cpus=settings.cpus,
        pids=settings.pids,
        disk_bytes=settings.disk_mb * MEBIBYTE,
        wall_s=settings.wall_s,
    )
