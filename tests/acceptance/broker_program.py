"""Runs the credential broker's compose files as processes, in one network namespace. Started by test_credential_broker.

    broker_program.py FOLDER

Every service is what the files say: its command, its variables, its volumes where its container has them, its order and
its health check. Three things are not: the store is the Vault test server, behind the certificate that the files make
for it; all networks are one loopback, but for services that have none; and everything runs as one user.
"""

import asyncio
import os
import signal
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import psutil

from tests.acceptance.compose_file import FOLDER, ROOT, Compose, Service, compose
from tests.vault_server.server import TestVault, running

_BIND: Final = ("bwrap", "--die-with-parent", "--unshare-user", "--unshare-ipc")
_SYSTEM: Final = ("bin", "etc", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
_PATIENCE_S: Final = 120.0


class Stack:
    def __init__(self, folder: Path, files: Compose) -> None:
        self._files = files
        self._volumes = folder / "volumes"
        self._logs = folder / "logs"
        self._programs = folder / "bin"
        for made in (self._volumes, self._logs, self._programs):
            made.mkdir()
        for name in files.volumes:
            (self._volumes / name).mkdir()
        (self._programs / "healthcheck").symlink_to(FOLDER / "healthcheck.py")

    def secrets(self) -> list[bytes]:
        return [path.read_bytes().strip() for path in (self._volumes / "outside-secrets").iterdir()]

    def authority_and_server(self) -> tuple[Path, Path]:
        return self._volumes / "store-tls" / "server.pem", self._volumes / "store-tls" / "server.key"

    async def run(self, name: str) -> tuple[int, bytes]:
        """A service to its end: its status, and what it said."""
        process = await self._start(self._files.services[name], stdout=PIPE, stderr=STDOUT)
        async with asyncio.timeout(_PATIENCE_S):
            said, _ = await process.communicate()
        (self._logs / f"{name}.log").write_bytes(said)
        return process.returncode or 0, said

    @asynccontextmanager
    async def serving(self, name: str, *, ends_with: int = 0) -> AsyncIterator[None]:
        """A service that goes on, once it is healthy. At the end it is told to end."""
        service = self._files.services[name]
        with (self._logs / f"{name}.log").open("wb") as log:
            process = await self._start(service, stdout=log, stderr=STDOUT)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not await self._is_healthy(service):
                    if process.returncode is not None:
                        raise AssertionError(f"{name} ended: {(self._logs / f'{name}.log').read_text()}")
            yield
        finally:
            if process.returncode is None:
                # To the service itself, as an engine would: bubblewrap does not pass signals on.
                for inside in psutil.Process(process.pid).children():
                    inside.terminate()
            async with asyncio.timeout(10):
                status = await process.wait()
            assert status == ends_with, f"{name} ended with {status}: {(self._logs / f'{name}.log').read_text()}"

    async def _is_healthy(self, service: Service) -> bool:
        words = service.raw["healthcheck"]["test"]
        assert words[0] == "CMD"
        check = await self._start(service, words[1:], stdout=DEVNULL, stderr=DEVNULL)
        return await check.wait() == 0

    async def _start(
        self, service: Service, words: Sequence[str] | None = None, *, stdout: object, stderr: object
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._cage(service),
            *(words or service.words),
            env=self._environment(service),
            stdin=DEVNULL,
            stdout=stdout,  # type: ignore[arg-type]
            stderr=stderr,  # type: ignore[arg-type]
        )

    def _environment(self, service: Service) -> dict[str, str]:
        path = f"{self._programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8", **service.environment}

    def _cage(self, service: Service) -> list[str]:
        """The file system of a container: the machine's own programs, the image's files, the service's volumes."""
        words = [*_BIND, *([] if service.has_network else ["--unshare-net"])]
        for path in (Path("/") / name for name in _SYSTEM):
            if path.is_symlink():
                words += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                words += ["--ro-bind", str(path), str(path)]
        words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for held, target in self._image_of(service).items():
            words += ["--ro-bind", str(held), target]
        for source, target, writable in service.volumes:
            if source in self._files.volumes:
                words += ["--bind" if writable else "--ro-bind", str(self._volumes / source), target]
        return [*words, *(["--chdir", "/opt/broker"] if service.target == "tools" else []), "--"]

    def _image_of(self, service: Service) -> Mapping[Path, str]:
        """Python and the packages, and beside them what the Dockerfile copies."""
        prefixes = {Path(prefix): prefix for prefix in (sys.base_prefix, sys.prefix) if not prefix.startswith("/usr")}
        if service.name == "sandbox":
            return {
                **prefixes,
                ROOT / "examples" / "sandbox_mcp_client" / "agent.py": "/opt/agent/agent.py",
                FOLDER / "sample" / "agent.py": "/opt/agent/sample.py",
                FOLDER / "forward.py": "/opt/agent/forward.py",
            }
        return {ROOT: str(ROOT), **prefixes, self._programs: str(self._programs), FOLDER: "/opt/broker"}


@asynccontextmanager
async def behind_tls(vault: TestVault, certificate: Path, key: Path) -> AsyncIterator[None]:
    """https://store:8200 is the test server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", vault.port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(carry(reader, out))
                both.create_task(carry(there, writer))
        except* OSError:
            pass  # one of the two has hung up

    server = await asyncio.start_server(join, "127.0.0.1", 8200, ssl=context)
    try:
        yield
    finally:
        server.close()


async def main(folder: Path) -> int:
    stack = Stack(folder, compose("tunnel", OUTSIDE_NET="127.0.0.0/8", STORE_NET="127.0.0.0/8"))
    assert (await stack.run("prepare"))[0] == 0
    with running() as server:
        server.vault.trouble = "uninitialised"
        async with AsyncExitStack() as serving:
            await serving.enter_async_context(behind_tls(server.vault, *stack.authority_and_server()))
            for name in ("unseal", "bootstrap", "login"):
                status, said = await stack.run(name)
                assert status == 0, said
            await serving.enter_async_context(stack.serving("proxy"))
            # uvicorn's own command dies of the signal that ended it.
            await serving.enter_async_context(stack.serving("outside", ends_with=128 + signal.SIGTERM))
            status, said = await stack.run("credentials")
            assert status == 0, said
            for name in ("runner", "tunnel"):
                await serving.enter_async_context(stack.serving(name))
            status, said = await stack.run("sandbox")
            sys.stdout.buffer.write(said)
        assert server.vault.unsupported == []
    for log in (folder / "logs").iterdir():
        assert not [secret for secret in stack.secrets() if secret in log.read_bytes()], f"a secret is in {log.name}"
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
