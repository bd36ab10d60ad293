"""Which sandbox drivers a home uses, in which order. Nothing is started or reached here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.docker.driver import Docker
from galley_sandbox.docker.engine import DEFAULT_URL
from galley_sandbox.docker.image import DEFAULT_IMAGE
from galley_sandbox.port import Driver, Limits

from galley_server.settings import MEBIBYTE, SandboxSettings
from galley_server.state import StateFiles


@dataclass(frozen=True, slots=True)
class Drivers:
    """`chosen` in order of preference. `former` may hold sandboxes from when the home was set up otherwise."""

    chosen: tuple[Driver, ...]
    former: tuple[Driver, ...] = ()


MakeDrivers: TypeAlias = Callable[[SandboxSettings, StateFiles, str], Drivers]


def drivers_of(settings: SandboxSettings, files: StateFiles, home_id: str) -> Drivers:
    bubblewrap = Bubblewrap(files.sandboxes, home_id)
    docker = Docker(
        home_id,
        url=settings.engine or DEFAULT_URL,
        image_name=settings.image or DEFAULT_IMAGE,
        runtime=settings.runtime,
    )
    match settings.choice:
        case "docker":
            return Drivers((docker,), former=(bubblewrap,))
        case "bubblewrap":
            return Drivers((bubblewrap,), former=(docker,))
        case "auto":
            return Drivers((docker, bubblewrap))


def limits_of(settings: SandboxSettings) -> Limits:
    return Limits(
        memory_bytes=settings.memory_mb * MEBIBYTE,
        cpus=settings.cpus,
        pids=settings.pids,
        disk_bytes=settings.disk_mb * MEBIBYTE,
        wall_s=settings.wall_s,
    )
