"""1 GB that passes the egress door untouched, against a plain TCP forwarder written the same way.

    python -m bench.egress

Both run in a process of their own, on the event loop that the proxy runs on; host and client are plain blocking
sockets. The connection begins with a TLS hello, which the door reads; what follows goes from transport to transport,
as in the forwarder, which reads nothing. The door must be at least 0.8 times as fast.
"""

import asyncio
import ipaddress
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from galley_vault_proxy.audit import Audit
from galley_vault_proxy.credentials.port import EnvCredential, Injection
from galley_vault_proxy.egress.door import EgressDoor, Parts
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import NoGate, Registry
from galley_vault_proxy.grant.token import Grant, HostRule
from galley_vault_proxy.http.serving import loop_factory
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State

SIZE: Final = 1 << 30
ROUNDS: Final = 5
TARGET: Final = 0.8
HOST: Final = "localhost"
_PIECE: Final = bytes(256 * 1024)


class NoCredentials:
    async def for_mcp(self, session_id: str, vault_ids: object, url: str, *, fresh: bool = False) -> Injection | None:
        return None

    async def for_host(self, session_id: str, vault_ids: object) -> tuple[EnvCredential, ...]:
        return ()

    async def placeholders(self, session_id: str, vault_ids: object) -> dict[str, str]:
        return {}

    async def refresh(self, credential_id: str, seen_version: int) -> bool:
        return False


class Half(asyncio.Protocol):
    """One side of a forwarded connection."""

    def __init__(self, peer: "Half | None" = None) -> None:
        self.peer = peer
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=256 * 1024)

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None
        self.peer.transport.write(data)

    def pause_writing(self) -> None:
        assert self.peer is not None
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        assert self.peer is not None
        self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None:
            self.peer.transport.close()


async def run_forwarder(port: int) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:

        class Front(Half):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.transport.pause_reading()
                tasks.create_task(self.connect())

            async def connect(self) -> None:
                _, self.peer = await loop.create_connection(lambda: Half(self), "127.0.0.1", port)
                self.transport.resume_reading()

        server = await loop.create_server(Front, "127.0.0.1", 0)
        say(str(server.sockets[0].getsockname()[1]))
        await asyncio.Event().wait()


async def run_door(port: int, home: Path) -> None:
    net = (ipaddress.ip_network("127.0.0.0/8"),)
    key = Secret("a service key for the bench")
    async with (
        State.open(home / "state.db", [rows.SCHEMA]) as state,
        Audit.open(home / "audit", max_bytes=1 << 22) as audit,
        Registry.open(state, key=b"k" * 32, gate=NoGate()) as registry,
        EgressDoor.open(
            Parts(registry, audit, Netguard(net), NoCredentials(), key, home), host="127.0.0.1", port=0
        ) as door,
    ):
        expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        grant = Grant("grant_1", "sesn_1", expires_at, hosts=(HostRule(HOST, ports=(port,)),))
        say(f"{door.port} {await registry.issue(grant)}")
        await asyncio.Event().wait()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without an answer")


def give(listener: socket.socket) -> None:
    """The host: as soon as it was spoken to, all of it."""
    while True:
        try:
            stream, _ = listener.accept()
        except OSError:
            return
        with stream:
            if stream.recv(65536):
                for _ in range(SIZE // len(_PIECE)):
                    stream.sendall(_PIECE)


def take(stream: socket.socket) -> float:
    """Speak, take everything, and say how many seconds that was."""
    began = time.perf_counter()
    stream.sendall(hello())
    buffer, left = bytearray(1 << 20), SIZE
    while left:
        got = stream.recv_into(buffer)
        assert got, "it broke off"
        left -= got
    return time.perf_counter() - began


def through_door(port: int, token: str, target: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as stream:
        authority = f"{HOST}:{target}"
        ask = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
        stream.sendall(ask.encode())
        assert stream.recv(4096).startswith(b"HTTP/1.1 200")
        return take(stream)


def through_forwarder(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as stream:
        return take(stream)


def start(stack: ExitStack, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "bench.egress", *arguments]
    program = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(program.kill)
    assert program.stdout is not None
    return program.stdout.readline().split()


def main() -> int:
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        target = listener.getsockname()[1]
        threading.Thread(target=give, args=(listener,), daemon=True).start()
        (forwarder,) = start(stack, "forwarder", str(target))
        door, token = start(stack, "door", str(target), home)
        ours: list[float] = []
        plain: list[float] = []
        for _ in range(ROUNDS):  # side by side, so that other load on the machine hits both
            plain.append(through_forwarder(int(forwarder)))
            ours.append(through_door(int(door), token, target))
    ratio = statistics.median(plain) / statistics.median(ours)
    rates = [SIZE / statistics.median(times) / 1e6 for times in (ours, plain)]
    print(f"1 GB through the door: {rates[0]:.0f} MB/s, plain forwarder {rates[1]:.0f} MB/s: ", end="")
    print(f"{ratio:.2f} times (at least {TARGET})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["forwarder", port]:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(run_forwarder(int(port)))
        case ["door", port, home]:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(run_door(int(port), Path(home)))
        case _:
            sys.exit(main())
