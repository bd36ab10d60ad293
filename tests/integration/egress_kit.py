"""A door of its own for each test, hosts of its own behind it, and clients that say exactly what a test wants."""

import asyncio
import base64
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import h11
from blockbuster import blockbuster_ctx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from galley_vault_proxy.audit import Audit, AuditLine, AuditQuery
from galley_vault_proxy.audit_files import AuditFiles
from galley_vault_proxy.credentials.port import EnvCredential, Injection, Location
from galley_vault_proxy.egress.door import EgressDoor, Parts
from galley_vault_proxy.errors import StoreUnavailable
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import NoGate, Registry
from galley_vault_proxy.grant.token import Grant, HostRule, Network, ServerRule
from galley_vault_proxy.netguard import Netguard
from galley_vault_proxy.preamble import greeting
from galley_vault_proxy.presets import Preset
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.state import State

KEY: Final = Secret("a service key for tests")
LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"),)
SECRET: Final = 'sk-live-7Qm"x4/9+Zr2&b'
PLACEHOLDER: Final = "sk-live-placeholder0001"
HOST: Final = "api.test"
OTHER: Final = "other.test"


def credential(
    *,
    number: int = 1,
    hosts: tuple[str, ...] | None = (HOST,),
    locations: Collection[Location] = ("header", "body"),
    secret: str = SECRET,
    placeholder: str = PLACEHOLDER,
    version: int = 3,
) -> EnvCredential:
    return EnvCredential(
        credential_id=f"vcrd_{number}",
        version=version,
        name=f"API_KEY_{number}",
        placeholder=placeholder,
        secret=Secret(secret),
        hosts=hosts,
        locations=frozenset(locations),
    )


class Credentials:
    """The port of the credentials, in memory."""

    def __init__(self, found: Sequence[EnvCredential] = ()) -> None:
        self.found = list(found)
        self.is_sealed = False
        self.refreshed: list[tuple[str, int]] = []

    async def for_mcp(
        self, session_id: str, vault_ids: Sequence[str], url: str, *, fresh: bool = False
    ) -> Injection | None:
        return None

    async def for_host(self, session_id: str, vault_ids: Sequence[str]) -> Sequence[EnvCredential]:
        if self.is_sealed:
            raise StoreUnavailable("the secret store is sealed")
        return tuple(self.found)

    async def placeholders(self, session_id: str, vault_ids: Collection[str]) -> dict[str, str]:
        return {one.name: one.placeholder for one in self.found}

    async def refresh(self, credential_id: str, seen_version: int) -> bool:
        self.refreshed.append((credential_id, seen_version))
        return True


class WatchedAudit(Audit):
    """Tells when there is a new line."""

    def __init__(self, files: AuditFiles) -> None:
        super().__init__(files)
        self.news = asyncio.Event()

    def record(self, line: AuditLine) -> None:
        super().record(line)
        self.news.set()


class Names:
    """The resolver: a table that a test may change while the door runs."""

    def __init__(self) -> None:
        self.table: dict[str, Sequence[str]] = {}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.table.get(host, ["127.0.0.1"])


class TestAuthority:
    """Signs for the hosts behind the door. The door trusts it, as it trusts the public ones elsewhere."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a public authority")])
        self.certificate = self._sign(self._name, self._key, [x509.BasicConstraints(ca=True, path_length=None)])
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self, *names: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([_general(name) for name in names])
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host")]), key, [alternative])
        path = self._folder / "host.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.pem)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extensions: Sequence[x509.ExtensionType]
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Seen:
    """A request as it arrived at a host."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def as_json(self) -> bytes:
        return json.dumps(
            {"method": self.method, "target": self.target, "headers": self.headers, "body": self.body.decode("latin-1")}
        ).encode()


Answer = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Host:
    """An HTTP server. By default it echoes what it got, headers and all. `answer` takes the whole connection over."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    connections: int = 0
    answer: Answer | None = None
    content_type: str = "application/json"
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        finally:
            self.closed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            seen = await self._request(connection, reader, writer)
            if seen is None:
                return
            self.seen.append(seen)
            if self.answer is not None:
                await self.answer(seen, writer)
                return
            body = seen.as_json
            headers = [("content-type", self.content_type), ("content-length", str(len(body)))]
            writer.write(connection.send(h11.Response(status_code=200, headers=headers)) or b"")
            if seen.method != "HEAD":
                writer.write(connection.send(h11.Data(data=body)) or b"")
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            await writer.drain()
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _request(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Seen | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                data = await reader.read(65536)
                self.raw += data
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
                return Seen(head.method.decode(), head.target.decode(), headers, bytes(body))
            else:
                return None


@dataclass
class Client:
    """A connection to the door. What is written goes out as it is."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}

    async def body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self.reader.readline(), 16):
                parts.append(await self.reader.readexactly(size))
                await self.reader.readline()
            while (await self.reader.readline()).strip():
                pass
            return b"".join(parts)
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        return status, headers, await self.body(headers)

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.say(data)
        return await self.answer()

    async def start_tls(self, context: ssl.SSLContext, name: str | None) -> None:
        """`name` None: say none."""
        loop = asyncio.get_running_loop()
        transport = self.writer.transport
        protocol = transport.get_protocol()
        secure = await loop.start_tls(transport, protocol, context, server_hostname=name or "")
        assert secure is not None
        # As StreamWriter.start_tls does it, but without insisting on a name.
        protocol._replace_writer(self.writer)  # type: ignore[attr-defined]
        self.writer._transport = secure  # type: ignore[attr-defined]
        self.reader._transport = secure  # type: ignore[attr-defined]

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Kitchen:
    """The door and everything around it."""

    door: EgressDoor
    registry: Registry
    audit: WatchedAudit
    names: Names
    credentials: Credentials
    authority: TestAuthority
    uds: Path
    folder: Path

    async def grant(
        self,
        *hosts: HostRule,
        network: Network = "limited",
        tunnel: str | None = None,
        presets: tuple[Preset, ...] = (),
        servers: tuple[ServerRule, ...] = (),
        grant_id: str = "grant_1",
        session_id: str = "sesn_1",
    ) -> str:
        return await self.registry.issue(
            Grant(
                id=grant_id,
                session_id=session_id,
                expires_at=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1),
                vault_ids=("vlt_1",),
                hosts=hosts,
                network=network,
                tunnel=tunnel,
                presets=presets,
                servers=servers,
            )
        )

    @asynccontextmanager
    async def client(self, *, tunnel: str | None = None, over_uds: bool = False) -> AsyncIterator[Client]:
        if over_uds or tunnel is not None:
            reader, writer = await asyncio.open_unix_connection(self.uds)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.door.port)
        if tunnel is not None:
            writer.write(greeting(KEY, tunnel))
        client = Client(reader, writer)
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def connected(self, token: str, host: str, port: int, *, tunnel: str | None = None) -> AsyncIterator[Client]:
        """A client whose CONNECT was granted."""
        async with self.client(tunnel=tunnel) as client:
            await client.say(connect(host, port, token))
            status, _ = await client.head()
            assert status == 200, status
            yield client

    @asynccontextmanager
    async def intercepted(self, token: str, host: str, port: int) -> AsyncIterator[Client]:
        """A client inside TLS that ends at the door."""
        async with self.connected(token, host, port) as client:
            await client.start_tls(self.sandbox_context(), host)
            yield client

    def sandbox_context(self) -> ssl.SSLContext:
        """What a sandbox trusts: the door's own authority alone, so that it shows who answered."""
        return ssl.create_default_context(cadata=self.door.ca_pem.decode())

    async def lines(self, action: str | None = None, decision: str | None = None) -> list[Mapping[str, object]]:
        page = await self.audit.query(AuditQuery())
        return [
            line
            for line in page.data
            if (action is None or line["action"] == action) and (decision is None or line["decision"] == decision)
        ]

    async def line(self, action: str, decision: str | None = None) -> Mapping[str, object]:
        """The first such line, as soon as it is there."""
        async with asyncio.timeout(5):
            while True:
                self.audit.news.clear()
                if found := await self.lines(action, decision):
                    return found[0]
                await self.audit.news.wait()


@asynccontextmanager
async def kitchen(folder: Path, *, found: Sequence[EnvCredential] = (), opened: bool = True) -> AsyncIterator[Kitchen]:
    """`opened`: private networks are, so that hosts on this machine are reached. Nothing may block the loop."""
    names, credentials, authority = Names(), Credentials(found), TestAuthority(folder)
    uds = folder / "egress.sock"
    async with (
        State.open(folder / "state.db", [rows.SCHEMA]) as state,
        WatchedAudit.open(folder / "audit", max_bytes=1 << 22) as audit,
        Registry.open(state, key=b"k" * 32, gate=NoGate()) as registry,
        EgressDoor.open(
            Parts(
                registry=registry,
                audit=audit,
                guard=Netguard(LOOPBACK if opened else (), resolver=names),
                credentials=credentials,
                key=KEY,
                home=folder,
                upstream_tls=authority.client_context(),
            ),
            host="127.0.0.1",
            port=0,
            uds=uds,
        ) as door,
    ):
        with blockbuster_ctx("galley_vault_proxy"):
            yield Kitchen(door, registry, audit, names, credentials, authority, uds, folder)


@asynccontextmanager
async def host(context: ssl.SSLContext | None = None, answer: Answer | None = None) -> AsyncIterator[Host]:
    served = Host(answer=answer)
    async with serving(served.serve, context) as served.port:
        yield served


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that leaves nothing behind; its port."""
    tasks: set[asyncio.Task[object]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError, h11.RemoteProtocolError):
            pass
        finally:
            if task.cancelling():
                writer.transport.abort()
            else:
                writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        while tasks:
            await asyncio.wait(tasks)


def connect(host: str, port: int, token: str, *more: str) -> bytes:
    lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}", f"Proxy-Authorization: Bearer {token}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def get(target: str, host: str, *more: str, method: str = "GET") -> bytes:
    return ("\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *more]) + "\r\n\r\n").encode()


def basic(password: str, user: str = "any") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
