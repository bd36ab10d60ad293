"""The one adapter: what it sends, what it refuses to do, and which fault each answer is."""

import gzip
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import galley_vault_proxy
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.settings import TokenAuth, VaultSettings
from galley_vault_proxy.store.vault_adapter import Answer, Request, VaultAdapter, network_fault
from galley_vault_proxy.store.vault_fault import Down, Invalid, Missing, Refused, VaultFault, fault_of

Handle = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says, and keeps what was asked."""

    protocol_version = "HTTP/1.1"
    handle_it: Handle
    asked: list["Handler"]

    def _any(self) -> None:
        self.asked.append(self)
        length = int(self.headers.get("Content-Length") or 0)
        self.content = self.rfile.read(length)
        with suppress(ConnectionError):  # whoever asked may have left
            type(self).handle_it(self)

    do_GET = do_POST = do_LIST = do_DELETE = _any

    def give(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _serving(handle: Handle, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Handler]]]:
    asked: list[Handler] = []
    kind = type("Handle", (Handler,), {"handle_it": staticmethod(handle), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.block_on_close = False
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def _adapter(address: str, **settings: Any) -> Iterator[VaultAdapter]:
    adapter = VaultAdapter(
        VaultSettings(address, TokenAuth(Secret("unused")), "token", **{"timeout_s": 2.0, **settings}), connections=2
    )
    try:
        yield adapter
    finally:
        adapter.close()


def _send(handle: Handle, request: Request, **settings: Any) -> tuple[Answer, list[Handler]]:
    with _serving(handle) as (port, asked), _adapter(f"http://127.0.0.1:{port}", **settings) as adapter:
        return adapter.send(request), asked


READ = Request("get", "secret/data/a", "read", token=Secret("s.token"), session="sesn_1")


def test_a_request_holds_what_it_was_given_and_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login evil password evil\n")
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".vault-token").write_text("s.from-file")
    for name, value in {
        "HOME": str(tmp_path),
        "VAULT_TOKEN": "s.from-environment",
        "http_proxy": "http://127.0.0.1:1",
        "all_proxy": "http://127.0.0.1:1",
        "NO_PROXY": "",
    }.items():
        monkeypatch.setenv(name, value)
    _, (asked,) = _send(lambda handler: handler.give(200), READ, namespace="team")
    headers = {name.lower(): value for name, value in asked.headers.items()}
    del headers["host"]
    assert headers == {
        "user-agent": "galley-vault-proxy",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "keep-alive",
        "x-vault-request": "true",
        "x-vault-token": "s.token",
        "x-vault-namespace": "team",
        "x-galley-session": "sesn_1",
    }


def test_a_request_without_a_token_sends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "s.from-environment")
    _, (asked,) = _send(lambda handler: handler.give(200), Request("post", "auth/approle/login", "log in", {"a": "b"}))
    assert asked.headers["X-Vault-Token"] is None
    assert asked.content == b'{"a": "b"}'


def test_health_is_asked_without_the_namespace() -> None:
    _, (asked,) = _send(
        lambda handler: handler.give(200), Request("get", "sys/health", "ask", namespaced=False), namespace="team"
    )
    assert asked.headers["X-Vault-Namespace"] is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with _serving(lambda handler: handler.give(200)) as (elsewhere, followed):
        location = f"http://127.0.0.1:{elsewhere}/v1/secret/data/a"
        with pytest.raises(Down, match="redirects"):
            _send(lambda handler: handler.give(status, Location=location), READ)
        assert followed == []


def test_a_cookie_is_not_sent_back() -> None:
    with (
        _serving(lambda handler: handler.give(200, Set_Cookie="sticky=1; Path=/")) as (port, asked),
        _adapter(f"http://127.0.0.1:{port}") as adapter,
    ):
        adapter.send(READ)
        adapter.send(READ)
        assert asked[1].headers["Cookie"] is None


@pytest.mark.parametrize(
    "path", ["secret/data/../../sys/seal", "secret//data", "secret/data/%2e%2e/x", "a/b?c", "a/.."]
)
def test_a_path_that_leads_elsewhere_is_never_sent(path: str) -> None:
    with pytest.raises(InvalidRequest):
        _send(lambda handler: handler.give(200), Request("get", path, "read"))


def test_an_answer_without_end_is_cut() -> None:
    with pytest.raises(Down, match="larger than"):
        _send(lambda handler: handler.give(200, b'{"a": "' + b"x" * (5 << 20) + b'"}'), READ)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"text"', b"\xff", b"null"])
def test_what_answers_like_no_vault_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(Down, match="VAULT_ADDR"):
        _send(lambda handler: handler.give(200, body), READ)


def test_a_compressed_answer_is_bounded_too() -> None:
    bomb = gzip.compress(b'{"a": "' + b"x" * (64 << 20) + b'"}')
    with pytest.raises(Down, match="larger than"):
        _send(lambda handler: handler.give(200, bomb, Content_Encoding="gzip"), READ)


def test_a_silent_server_is_given_up() -> None:
    gone = threading.Event()
    try:
        with pytest.raises(Down, match="slow"):
            _send(lambda handler: handler.give(200) if gone.wait(5) else None, READ, timeout_s=0.2)
    finally:
        gone.set()


@pytest.mark.parametrize("status", range(201, 600))
def test_every_status_is_some_fault(status: int) -> None:
    fault = fault_of(status, ("secret path and text",), "read a secret")
    expected: dict[int, type[VaultFault]] = {400: Invalid, 401: Refused, 403: Refused, 404: Missing}
    assert type(fault) is expected.get(status, Down)
    assert "secret path" not in fault.message


def test_what_surely_was_not_done_is_known() -> None:
    done = {
        status: fault.done for status in range(500, 600) if isinstance(fault := fault_of(status, (), "write"), Down)
    }
    assert [status for status, may_be in done.items() if not may_be] == [501, 503]
    standby = fault_of(500, ("local node not active but active cluster node not found",), "write")
    assert isinstance(standby, Down)
    assert not standby.done


def test_an_engine_that_is_only_being_set_up_is_a_passing_fault() -> None:
    fault = fault_of(400, ("Upgrading. This backend will be unavailable for a brief period and will resume",), "write")
    assert isinstance(fault, Down)
    assert (fault.passing, fault.done, fault.ill) == (True, False, False)


def _kinds(root: type[requests.RequestException]) -> Iterator[type[requests.RequestException]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)


@pytest.mark.parametrize("kind", sorted(set(_kinds(requests.RequestException)), key=str))
def test_every_fault_of_the_network_is_named_without_its_url(kind: type[requests.RequestException]) -> None:
    error = kind.__new__(kind)
    error.args = ("https://vault/v1/secret/data/path",)
    fault = network_fault(error)
    assert isinstance(fault, Down)
    assert "secret/data" not in fault.message


def test_a_refused_connection_means_that_nothing_was_done() -> None:
    with _adapter("http://127.0.0.1:1") as adapter, pytest.raises(Down, match="cannot be reached") as caught:
        adapter.send(READ)
    assert not caught.value.done


@pytest.mark.parametrize("setting", ["ca_cert", "ca_path", "client_cert"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, setting: str) -> None:
    settings = {setting: tmp_path / "none.pem"}
    if setting == "client_cert":
        settings["client_key"] = tmp_path / "none.pem"
    with _adapter("https://127.0.0.1:1", **settings) as adapter, pytest.raises(Down, match="VAULT_CACERT"):
        adapter.send(READ)


def test_answers_and_requests_do_not_print() -> None:
    assert "s.token" not in repr(READ)
    assert "canary" not in repr(Answer(200, {"data": "canary"}))


def test_nothing_but_the_adapter_knows_hvac() -> None:
    folder = Path(galley_vault_proxy.__file__).parent
    users = {
        path.name
        for path in folder.rglob("*.py")
        if "hvac.adapters" in path.read_text() or "import hvac" in path.read_text()
    }
    assert users == {"vault_adapter.py"}


def _authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for vault.example and 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault.example")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("vault.example"), x509.IPAddress(ip_address("127.0.0.2"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "both.pem").write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return folder / "ca.pem", context


def test_a_certificate_of_the_named_authority_is_trusted_under_the_named_name(tmp_path: Path) -> None:
    ca, context = _authority(tmp_path)
    with (
        _serving(lambda handler: handler.give(200), context) as (port, _),
        _adapter(f"https://127.0.0.1:{port}", ca_cert=ca, tls_server_name="vault.example") as adapter,
    ):
        assert adapter.send(READ).status == 200


@pytest.mark.parametrize("given", ["no authority", "no name"])
def test_a_certificate_that_cannot_be_verified_is_refused(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, context = _authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    settings = {"tls_server_name": "vault.example"} if given == "no authority" else {"ca_cert": ca}
    with (
        _serving(lambda handler: handler.give(200), context) as (port, asked),
        _adapter(f"https://127.0.0.1:{port}", **settings) as adapter,
    ):
        with pytest.raises(Down, match="VAULT_CACERT") as caught:
            adapter.send(READ)
        assert not caught.value.done
        assert asked == []
