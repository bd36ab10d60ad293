"""Sandboxes as containers of a Docker engine. A container outlives the server that started it."""

import asyncio
import io
import logging
import secrets
import tarfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from galley_sandbox import staging
from galley_sandbox.client import HandClient
from galley_sandbox.docker import container, image
from galley_sandbox.docker.container import Identity
from galley_sandbox.docker.engine import DEFAULT_URL, Engine, ExecStream
from galley_sandbox.docker.failures import Conflict, Missing
from galley_sandbox.errors import SandboxError, SandboxLost, SandboxUnavailable
from galley_sandbox.port import Limits, LimitStatus, MiB, Probe, Sandbox, Spec

if TYPE_CHECKING:
    from docker import DockerClient

logger = logging.getLogger(__name__)

START_WITHIN_S = 60.0
IDLE_EXIT_S = 900.0
_GONE_WITHIN_S = 20.0
_POLL_S = 0.05
_MARKER = f"{staging.IN_SANDBOX}/complete"


class DockerSandbox:
    def __init__(self, engine: Engine, identity: Identity) -> None:
        self._engine = engine
        self._identity = identity

    @property
    def id(self) -> str:
        return self._identity.id

    @property
    def session_id(self) -> str:
        return self._identity.session_id

    @property
    def incarnation(self) -> str:
        return self._identity.incarnation

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[HandClient]:
        async with AsyncExitStack() as stack:
            try:
                stream = await self._stream(stack)
            except (Conflict, Missing) as e:
                raise SandboxLost(f"The container of sandbox {self.id} does not run.") from e
            yield await stack.enter_async_context(
                HandClient.open(stream, incarnation=self.incarnation, wall_s=self._identity.limits.wall_s)
            )

    async def _stream(self, stack: AsyncExitStack) -> ExecStream:
        command = [*container.PYTHON, container.SOCKET]
        try:
            return await stack.enter_async_context(self._engine.exec_stream(self.id, command))
        except Conflict:
            await self._engine.do(f"thaw {self.id}", self._thaw)
        return await stack.enter_async_context(self._engine.exec_stream(self.id, command))

    def _thaw(self, client: "DockerClient") -> None:
        if client.api.inspect_container(self.id)["State"]["Paused"]:
            client.api.unpause(self.id)


class Docker:
    """The driver. `runtime` is any OCI runtime the engine knows, `image_name` any image with python3 and bash."""

    def __init__(
        self,
        home_id: str,
        *,
        url: str = DEFAULT_URL,
        image_name: str = image.DEFAULT_IMAGE,
        runtime: str | None = None,
        idle_exit_s: float = IDLE_EXIT_S,
    ) -> None:
        self._engine = Engine(url)
        self._home_id = home_id
        self._image_name = image_name
        self._runtime = runtime
        self._idle_exit_s = idle_exit_s
        self._preparing = asyncio.Lock()
        self._volume: str | None = None
        self._info: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "docker"

    async def close(self) -> None:
        """Let go of the connections to the engine; sandboxes live on."""
        await self._engine.close()

    async def probe(self) -> Probe:
        sandbox = await self.provision(Spec(session_id="probe", limits=Limits(disk_bytes=16 * MiB)))
        try:
            async with sandbox.connect() as hand:
                result = await hand.call("probe", "bash", {"command": "echo $((6*7))"}, timeout_s=START_WITHIN_S)
        finally:
            await self.destroy(sandbox.id)
        if result.is_error or result.text != "42":
            raise SandboxUnavailable(
                f"A container started, but its first command failed: {result.text[:200]!r}.",
                fix=f"use an image with python3 (3.8 or newer) and bash; {self._image_name} seems to lack one",
            )
        version, runtime = self._info.get("ServerVersion"), self._runtime or self._info.get("DefaultRuntime")
        return Probe(driver=self.name, detail=f"Docker {version}, runtime {runtime}, image {self._image_name}")

    async def image_is_here(self) -> bool:
        return await image.has_image(self._engine, self._image_name)

    async def provision(self, spec: Spec) -> DockerSandbox:
        try:
            return await self._provision(spec)
        except SandboxUnavailable:
            # Somebody may have pruned the engine's volumes or images under us, so look again, once.
            if self._volume is None:
                raise
            self._volume = None
            return await self._provision(spec)

    async def _provision(self, spec: Spec) -> DockerSandbox:
        volume = await self._prepared()
        identity = Identity(
            id=f"galley-{secrets.token_hex(12)}",
            home_id=self._home_id,
            session_id=spec.session_id,
            incarnation=f"inc_{secrets.token_hex(16)}",
            limits=spec.limits,
        )
        config = container.hand_config(identity, self._cgroup_version, self._idle_exit_s)
        settings = container.settings(identity, config, image=self._image_name, volume=volume, runtime=self._runtime)
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self._engine.do("start a container", lambda client: client.containers.create(**settings).start())
                sandbox = DockerSandbox(self._engine, identity)
                async with sandbox.connect():
                    return sandbox
        except (TimeoutError, SandboxError) as e:
            said = await self._last_words(identity.id)
            await self.destroy(identity.id)
            raise SandboxUnavailable(
                f"Docker could not start a sandbox: {said or e}",
                fix=f"the image {self._image_name} must have python3 (3.8 or newer) and bash; see `galley doctor`",
            ) from e
        except asyncio.CancelledError:
            await asyncio.shield(self.destroy(identity.id))
            raise

    async def adopt(self) -> list[Sandbox]:
        listed = await self._engine.do("list containers", self._list)
        async with asyncio.TaskGroup() as tasks:
            checked = [tasks.create_task(self._revive_or_remove(name, state, labels)) for name, state, labels in listed]
        return [sandbox for task in checked if (sandbox := task.result()) is not None]

    async def destroy(self, sandbox_id: str) -> None:
        def remove(client: "DockerClient") -> None:
            details = client.api.inspect_container(sandbox_id)
            if (details["Config"]["Labels"] or {}).get(container.LABEL_HOME) == self._home_id:
                client.api.remove_container(details["Id"], force=True, v=True)

        for _ in range(int(_GONE_WITHIN_S / _POLL_S)):
            try:
                await self._engine.do(f"remove {sandbox_id}", remove)
            except Missing:
                return
            except Conflict:
                await asyncio.sleep(_POLL_S)  # somebody else is removing it
            else:
                return
        raise SandboxError(f"The container {sandbox_id} is still being removed after {_GONE_WITHIN_S:.0f} s.")

    async def limits_report(self) -> list[LimitStatus]:
        if not self._info:
            self._info = await self._engine.do("tell about itself", lambda client: client.info())
        return limits_report(self._info)

    @property
    def _cgroup_version(self) -> int:
        return 2 if str(self._info.get("CgroupVersion")) == "2" else 1

    def _list(self, client: "DockerClient") -> list[tuple[str, str, dict[str, str]]]:
        wanted = {"label": f"{container.LABEL_HOME}={self._home_id}"}
        listed = client.api.containers(all=True, filters=wanted)
        return [(str(entry["Names"][0]).removeprefix("/"), entry["State"], entry["Labels"]) for entry in listed]

    async def _revive_or_remove(self, name: str, state: str, labels: dict[str, str]) -> Sandbox | None:
        identity = container.identity_of(name, labels)
        if identity is not None and state in ("running", "paused"):
            sandbox = DockerSandbox(self._engine, identity)
            try:
                async with sandbox.connect():
                    return sandbox
            except SandboxLost as e:
                logger.warning("sandbox %s is not adopted: %s", name, e)
            except SandboxError as e:
                # Not known to be dead, so neither used nor removed; the next restart looks again.
                logger.warning("sandbox %s is left alone: %s", name, e)
                return None
        try:
            await self.destroy(name)
        except SandboxError as e:
            logger.warning("sandbox %s could not be removed: %s", name, e)
        return None

    async def _last_words(self, name: str) -> str:
        try:
            raw = await self._engine.do("read a log", lambda client: client.api.logs(name, tail=5))
        except SandboxError:
            return ""
        return bytes(raw).decode(errors="replace").strip()[-600:]

    async def _prepared(self) -> str:
        """The engine answers, the image is there, and the hand's files are in a volume; once per server."""
        async with self._preparing:
            if self._volume is None:
                self._info = await self._engine.do("tell about itself", lambda client: client.info())
                await image.ensure_image(self._engine, self._image_name)
                self._volume = await self._filled_volume()
            return self._volume

    async def _filled_volume(self) -> str:
        """The files go into a volume, so that they reach any engine, near or far, and any image."""
        files = await asyncio.to_thread(staging.contents)
        # Named by what is in it and mounted read-only, it serves all homes of this engine.
        volume = f"galley-hand-{staging.digest(files)}"
        async with self._carrier(volume) as carrier:
            try:
                await self._engine.do("look at the hand's files", partial(_look, carrier))
            except Missing:
                for archive in (_archive(files), _archive({"complete": b""})):
                    # The marker comes last: a volume without it was filled by half.
                    await self._engine.do("lay out the hand's files", partial(_put, carrier, archive))
        return volume

    @asynccontextmanager
    async def _carrier(self, volume: str) -> AsyncIterator[str]:
        """A container that is never started: an engine takes files into a volume only by way of one."""
        name = f"galley-carrier-{secrets.token_hex(8)}"
        settings = container.carrier_settings(name, self._home_id, image=self._image_name, volume=volume)

        def create(client: "DockerClient") -> None:
            client.volumes.create(volume)
            client.containers.create(**settings)

        try:
            await self._engine.do("prepare a volume for the hand's files", create)
            yield name
        finally:
            with suppress(Missing):
                await asyncio.shield(self._engine.do("clean up", lambda client: client.api.remove_container(name)))


def _look(carrier: str, client: "DockerClient") -> None:
    """Raises docker-py's NotFound if the marker is not there."""
    pieces, _ = client.api.get_archive(carrier, _MARKER)
    # Read to its end, which gives the connection back.
    for _ in pieces:
        pass


def _put(carrier: str, archive: bytes, client: "DockerClient") -> None:
    client.api.put_archive(carrier, staging.IN_SANDBOX, archive)


def _archive(files: dict[str, bytes]) -> bytes:
    """A tar of files that belong to root and that everybody may read."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return target.getvalue()


def limits_report(info: dict[str, Any]) -> list[LimitStatus]:
    """From what the engine says of its machine."""

    def held(key: str) -> bool:
        return bool(info.get(key))

    return [
        LimitStatus("memory", held("MemoryLimit"), "memory cgroup" if held("MemoryLimit") else _WITHOUT),
        LimitStatus("cpus", held("CpuCfsQuota"), "cpu cgroup" if held("CpuCfsQuota") else _WITHOUT),
        LimitStatus("cpu_time", True, "a resource limit on each process"),
        LimitStatus("pids", True, "pids cgroup" if held("PidsLimit") else "a resource limit on the sandbox's own user"),
        LimitStatus("disk", True, "a sized file system in memory, at most half of the memory limit"),
        LimitStatus("wall_time", True, "the hand's clock"),
        LimitStatus("output", True, "counted by the hand"),
        LimitStatus("network", True, "a network name space with loopback alone"),
    ]


_WITHOUT = "the engine's machine has no such cgroup controller"
