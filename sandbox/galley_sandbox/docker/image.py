"""The base image: found, or built here from the distribution's packages, or pulled."""

import asyncio
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from galley_sandbox.docker.engine import Engine
from galley_sandbox.docker.failures import Missing
from galley_sandbox.errors import SandboxUnavailable

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT_IMAGE = "galley-sandbox:1"
_PUBLIC_IMAGE = "python:3.12-slim-bookworm"
_SUITE = "bookworm"
_BUILD_WITHIN_S = 900.0
_CHANGES = [
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8",
    'CMD ["/bin/bash"]',
]


def packages() -> list[str]:
    """The recipe: the packages of the base image."""
    return files("galley_sandbox").joinpath("recipe/packages.txt").read_text().split()


async def has_image(engine: Engine, name: str) -> bool:
    try:
        await engine.do(f"look for the image {name}", lambda client: client.images.get(name))
    except Missing:
        return False
    return True


async def ensure_image(engine: Engine, name: str = DEFAULT_IMAGE) -> None:
    """Make sure that the image is there. Building one takes half a minute and more. Raises SandboxUnavailable."""
    if await has_image(engine, name):
        return
    if name != DEFAULT_IMAGE:
        await _pull(engine, name, name)
        return
    builder = await asyncio.to_thread(_builder)
    if builder is not None:
        await _build(engine, builder, name)
    else:
        await _pull(engine, _PUBLIC_IMAGE, name)


def _builder() -> str | None:
    """What makes a Debian tree from packages, where it can be used."""
    return (shutil.which("mmdebstrap") or shutil.which("debootstrap")) if os.geteuid() == 0 else None


async def _pull(engine: Engine, source: str, name: str) -> None:
    repository, _, tag = name.rpartition(":")

    def pull(client: "DockerClient") -> None:
        source_repository, _, source_tag = source.rpartition(":")
        image = client.images.pull(source_repository or source, tag=source_tag if source_repository else "latest")
        if source != name:
            image.tag(repository, tag=tag)

    try:
        await engine.do(f"pull the image {source}", pull)
    except (SandboxUnavailable, Missing) as e:
        command = f"docker pull {source}" + (f" && docker tag {source} {name}" if source != name else "")
        raise SandboxUnavailable(f"The sandbox image {name} is not here and could not be pulled.", fix=command) from e


async def _build(engine: Engine, builder: str, name: str) -> None:
    repository, _, tag = name.rpartition(":")
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="galley-image-"))
    try:
        archive = folder / "base.tar"
        for command in await asyncio.to_thread(_build_commands, builder, folder, archive):
            await _run(command)
        await engine.do(
            f"import the image {name}",
            lambda client: client.api.import_image(str(archive), repository=repository, tag=tag, changes=_CHANGES),
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)


def _build_commands(builder: str, folder: Path, archive: Path) -> list[list[str]]:
    wanted = ",".join(packages())
    if Path(builder).name == "mmdebstrap":
        return [[builder, "--quiet", "--variant=minbase", f"--include={wanted}", _SUITE, str(archive)]]
    tree = str(folder / "tree")
    return [
        [builder, "--variant=minbase", f"--include={wanted}", _SUITE, tree],
        ["tar", "--create", "--one-file-system", f"--file={archive}", f"--directory={tree}", "."],
    ]


async def _run(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_BUILD_WITHIN_S):
            _, complaint = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        said = complaint.decode(errors="replace").strip().splitlines()
        raise SandboxUnavailable(
            f"The sandbox image could not be built: {said[-1] if said else 'no reason given'}",
            fix=" ".join(command) + f", then docker import the archive as {DEFAULT_IMAGE}",
        )
