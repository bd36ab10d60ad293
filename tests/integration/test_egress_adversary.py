"""Somebody hostile inside the sandbox, with a good grant in hand, tries every way around it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from galley_vault_proxy.egress import connection as connections
from galley_vault_proxy.egress import incoming
from galley_vault_proxy.grant.token import HostRule
from galley_vault_proxy.preamble import greeting
from galley_vault_proxy.secret import Secret

from tests.integration.egress_kit import (
    HOST,
    OTHER,
    PLACEHOLDER,
    Client,
    Host,
    Kitchen,
    basic,
    connect,
    credential,
    get,
    host,
    kitchen,
    serving,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def within_time() -> AsyncIterator[None]:
    async with asyncio.timeout(20):
        yield


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Kitchen]:
    async with kitchen(tmp_path, found=[credential()]) as opened:
        yield opened


@pytest.fixture
async def closed(tmp_path: Path) -> AsyncIterator[Kitchen]:
    """No private network is opened."""
    async with kitchen(tmp_path, opened=False) as opened:
        yield opened


@pytest.fixture
async def secure(house: Kitchen) -> AsyncIterator[Host]:
    async with host(house.authority.server_context(HOST, OTHER, "127.0.0.1")) as served:
        yield served


@pytest.fixture
async def plain() -> AsyncIterator[Host]:
    async with host() as served:
        yield served


async def reason_of_denial(house: Kitchen) -> object:
    return (await house.lines(decision="deny"))[-1]["reason"]


# Where it leads


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "192.168.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "224.0.0.1",
    ],
)
async def test_no_private_address_is_connected_to(closed: Kitchen, target: str) -> None:
    token = await closed.grant(network="unrestricted")
    async with closed.client() as client:
        status, _, _ = await client.ask(connect(target, 443, token))
    assert status == 403
    assert await reason_of_denial(closed) == "address_refused"


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost."])
async def test_other_spellings_of_an_address_lead_nowhere(closed: Kitchen, spelling: str) -> None:
    token = await closed.grant(network="unrestricted")
    async with closed.client() as client:
        status, _, _ = await client.ask(connect(spelling, 443, token))
    assert status in (400, 403)


@pytest.mark.parametrize("found", [["10.0.0.1"], ["127.0.0.1", "::1"], ["::ffff:169.254.169.254"]])
async def test_a_name_that_leads_to_a_private_address_is_refused(closed: Kitchen, found: list[str]) -> None:
    closed.names.table[HOST] = found
    token = await closed.grant(HostRule(HOST))
    authority = HOST
    async with closed.client() as client:
        assert (await client.ask(connect(HOST, 443, token)))[0] == 403
    async with closed.client() as client:
        request = get(f"http://{authority}/", authority, f"Proxy-Authorization: {basic(token)}")
        assert (await client.ask(request))[0] == 403


async def test_a_name_is_resolved_once_for_a_connection(house: Kitchen) -> None:
    """Rebinding: what it leads to afterwards does not matter any more."""
    async with host(house.authority.server_context(HOST)) as served:
        token = await house.grant(HostRule(HOST, ports=(served.port,)))
        async with house.intercepted(token, HOST, served.port) as client:
            house.names.table[HOST] = ["169.254.169.254"]
            for _ in range(2):
                ask = get("/", f"{HOST}:{served.port}", "Connection: keep-alive")
                assert (await client.ask(ask))[0] == 200
    assert house.names.asked == [HOST]


async def test_a_redirect_is_the_clients_own_next_request(house: Kitchen, plain: Host) -> None:
    async def elsewhere(seen: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    plain.answer = elsewhere
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    authority = f"{HOST}:{plain.port}"
    async with house.client() as client:
        request = get(f"http://{authority}/", authority, f"Proxy-Authorization: {basic(token)}")
        assert (await client.ask(request))[0] == 302
    async with house.client() as client:
        target = "http://169.254.169.254/"
        request = get(target, "169.254.169.254", f"Proxy-Authorization: {basic(token)}")
        assert (await client.ask(request))[0] == 403


# Which name TLS says


@pytest.mark.parametrize("network", ["limited", "unrestricted"])
async def test_tls_that_names_another_host_is_refused(house: Kitchen, secure: Host, network: str) -> None:
    token = await house.grant(HostRule(OTHER, ports=(secure.port,)), network=network)  # type: ignore[arg-type]
    async with house.connected(token, OTHER, secure.port) as client:
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await client.start_tls(house.authority.client_context(), "evil.test")
    assert secure.seen == []
    assert (await house.line("egress.connect"))["reason"] == "sni_mismatch"


async def test_tls_that_names_nobody_is_refused_under_limited(house: Kitchen, secure: Host) -> None:
    context = house.authority.client_context()
    context.check_hostname = False
    token = await house.grant(HostRule(OTHER, ports=(secure.port,)))
    async with house.connected(token, OTHER, secure.port) as client:
        with pytest.raises(ssl.SSLError):
            await client.start_tls(context, None)
    assert (await house.line("egress.connect"))["reason"] == "sni_missing"


async def test_tls_that_names_nobody_passes_under_unrestricted(house: Kitchen, secure: Host) -> None:
    context = house.authority.client_context()
    context.check_hostname = False
    token = await house.grant(network="unrestricted")
    async with house.connected(token, OTHER, secure.port) as client:
        await client.start_tls(context, None)
        assert (await client.ask(get("/", OTHER)))[0] == 200


OTHERS = (b"SSH-2.0-OpenSSH_9\r\n", b"\x80\x2e\x01\x00\x02", b"\0\0\0\x08\x04\xd2\x16\x2f", b"\x16\x03\x01\0\0")
CHUNKS = (b"5;\r\nhello\r\n", b"5\nhello\r\n", b"0x5\r\nhello\r\n", b"5\r\nhelloXX0\r\n\r\n", b"-1\r\n")


async def test_a_second_hello_must_name_the_same_host(house: Kitchen) -> None:
    """A server that asks for another hello does not always compare the names in the two."""
    heard = bytearray()

    async def asks_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(65536))
        writer.write(b"\x16\x03\x03\x00\x04\x02\0\0\0")
        heard.extend(await reader.read())

    async with serving(asks_again) as port:
        token = await house.grant(HostRule(OTHER, ports=(port,)))
        async with house.connected(token, OTHER, port) as client:
            await client.say(first_words(OTHER))
            await client.reader.readexactly(9)
            await client.say(b"\x14\x03\x03\x00\x01\x01" + first_words("evil.test"))
            assert (await client.reader.read())[:1] == b"\x15"
    assert b"evil.test" not in heard
    assert (await house.line("egress.connect"))["reason"] == "sni_mismatch"


def first_words(name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("first", OTHERS)
async def test_what_is_neither_tls_nor_http_does_not_pass_under_limited(
    house: Kitchen, plain: Host, first: bytes
) -> None:
    token = await house.grant(HostRule(OTHER, ports=(plain.port,)))
    async with house.connected(token, OTHER, plain.port) as client:
        await client.say(first)
        await client.reader.read()
    assert plain.raw == b""
    assert (await house.line("egress.connect"))["decision"] == "deny"


async def test_nothing_unreadable_passes_to_a_host_with_a_credential(house: Kitchen, plain: Host) -> None:
    token = await house.grant(network="unrestricted")
    async with house.connected(token, HOST, plain.port) as client:
        await client.say(b"SSH-2.0-OpenSSH_9 " + PLACEHOLDER.encode() + b"\r\n")
        assert await client.reader.read() == b""
    assert plain.raw == b""


# Which host the request says


async def test_host_must_be_where_the_connection_goes(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(secure.port,)), HostRule(OTHER, ports=(secure.port,)))
    async with house.intercepted(token, HOST, secure.port) as client:
        status, _, _ = await client.ask(get("/", f"{OTHER}:{secure.port}", f"X-Key: {PLACEHOLDER}"))
    assert status == 400
    assert secure.seen == []


@pytest.mark.parametrize("said", ["evil.test", "evil.test:443", f"{HOST}:444", ""])
async def test_a_connect_and_its_host_must_agree(house: Kitchen, said: str) -> None:
    token = await house.grant(HostRule(HOST))
    async with house.client() as client:
        asked = connect(HOST, 443, token).replace(f"Host: {HOST}:443".encode(), f"Host: {said}".encode())
        assert (await client.ask(asked))[0] == 400
    assert house.names.asked == []


async def test_the_url_and_host_must_agree(house: Kitchen, plain: Host) -> None:
    token = await house.grant(HostRule(OTHER, ports=(plain.port,)))
    async with house.client() as client:
        request = get(f"http://{OTHER}:{plain.port}/", "evil.test", f"Proxy-Authorization: {basic(token)}")
        assert (await client.ask(request))[0] == 400
    assert plain.seen == []


async def test_a_connect_inside_a_connection_leads_nowhere(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(secure.port,)))
    async with house.intercepted(token, HOST, secure.port) as client:
        status, _, _ = await client.ask(connect("169.254.169.254", 80, token))
    assert status == 400
    assert secure.seen == []


SMUGGLED = {
    "two lengths": "Content-Length: 5\r\nContent-Length: 6",
    "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "odd chunks": "Transfer-Encoding: xchunked",
    "two codings": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "folded": "X: a\r\n Transfer-Encoding: chunked",
    "bare line feed": "X: a\nTransfer-Encoding: chunked",
    "bare return": "X: a\rTransfer-Encoding: chunked",
    "space before the colon": "Transfer-Encoding : chunked",
    "two hosts": f"Host: {OTHER}",
    "a control character": "X: a\x00b",
}


@pytest.mark.parametrize("what", SMUGGLED)
@pytest.mark.parametrize("is_read", [True, False])
async def test_a_request_inside_a_request_goes_nowhere(
    house: Kitchen, secure: Host, plain: Host, what: str, is_read: bool
) -> None:
    inner = b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: evil\r\n\r\n"
    if is_read:
        token = await house.grant(HostRule(HOST, ports=(secure.port,)))
        async with house.intercepted(token, HOST, secure.port) as client:
            answer = await client.ask(get("/", f"{HOST}:{secure.port}", SMUGGLED[what], method="POST") + inner)
            assert await client.reader.read() == b""
    else:
        token = await house.grant(HostRule(OTHER, ports=(plain.port,)))
        authority = f"{OTHER}:{plain.port}"
        async with house.client() as client:
            more = (f"Proxy-Authorization: {basic(token)}", SMUGGLED[what])
            answer = await client.ask(get(f"http://{authority}/", authority, *more, method="POST") + inner)
            assert await client.reader.read() == b""
    assert answer[0] == 400
    assert not secure.raw + plain.raw


@pytest.mark.parametrize("chunk", CHUNKS)
async def test_chunks_that_are_malformed_are_not_passed_on_as_they_are(
    house: Kitchen, plain: Host, chunk: bytes
) -> None:
    token = await house.grant(HostRule(OTHER, ports=(plain.port,)))
    authority = f"{OTHER}:{plain.port}"
    more = (f"Proxy-Authorization: {basic(token)}", "Transfer-Encoding: chunked")
    async with house.client() as client:
        await client.say(get(f"http://{authority}/", authority, *more, method="POST") + chunk + b"0\r\n\r\n")
        await client.reader.read(1)
    assert chunk not in plain.raw


async def test_trace_is_not_passed_on(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(secure.port,)))
    async with house.intercepted(token, HOST, secure.port) as client:
        assert (await client.ask(get("/", f"{HOST}:{secure.port}", method="TRACE")))[0] == 400


async def test_a_host_cannot_answer_for_the_next_request(house: Kitchen) -> None:
    async def two_answers(seen: object, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )
        await writer.drain()

    async with host(house.authority.server_context(HOST), two_answers) as served:
        token = await house.grant(HostRule(HOST, ports=(served.port,)))
        async with house.intercepted(token, HOST, served.port) as client:
            for _ in range(2):
                assert (await client.ask(get("/", f"{HOST}:{served.port}")))[2] == b"ok"
    assert served.connections == 2


# Whose grant it is


async def test_a_grant_stolen_by_another_tunnel_fails(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(OTHER, ports=(secure.port,)), tunnel="tun_mine")
    async with house.connected(token, OTHER, secure.port, tunnel="tun_mine") as client:
        await client.start_tls(house.authority.client_context(), OTHER)
    for thief in ("tun_other", None):
        async with house.client(tunnel=thief) as client:
            status, _, _ = await client.ask(connect(OTHER, secure.port, token))
            assert status == 407
        assert await reason_of_denial(house) == "grant_tunnel"


async def test_a_greeting_is_not_believed_without_its_proof(house: Kitchen) -> None:
    token = await house.grant(HostRule(HOST), tunnel="tun_mine")
    async with house.client(over_uds=True) as client:
        await client.say(greeting(Secret("another key altogether"), "tun_mine") + connect(HOST, 443, token))
        assert (await client.head())[0] == 401


async def test_a_greeting_over_tcp_is_only_noise(house: Kitchen) -> None:
    token = await house.grant(HostRule(HOST), tunnel="tun_mine")
    async with house.client() as client:
        await client.say(greeting(Secret("a service key for tests"), "tun_mine") + connect(HOST, 443, token))
        assert (await client.head())[0] == 400


@pytest.mark.parametrize("forged", ["galley1.e30.c2ln", "galley1.", "x" * 20_000, ""])
async def test_a_forged_grant_is_refused(house: Kitchen, forged: str) -> None:
    async with house.client() as client:
        status, _, _ = await client.ask(connect(HOST, 443, forged))
    assert status == 407
    assert house.names.asked == []


async def test_the_token_is_in_no_line_and_no_answer(house: Kitchen, plain: Host) -> None:
    token = await house.grant(HostRule(HOST))
    async with house.client() as client:
        _, headers, body = await client.ask(connect(OTHER, 443, token))
    assert token not in str(headers) + body.decode() + str(await house.lines())


# How much and how long


async def test_a_head_that_is_too_large_is_refused(house: Kitchen) -> None:
    async with house.client() as client:
        await client.say(b"GET http://a.test/ HTTP/1.1\r\nX: " + b"x" * 70_000)
        assert (await client.head())[0] == 431


async def test_a_head_that_does_not_end_is_not_waited_for(house: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "HEAD_S", 0.2)
    async with house.client() as client:
        await client.say(b"GET http://a.test/ HTTP/1.1\r\nX: ")
        assert (await client.head())[0] == 408


async def test_a_hello_that_does_not_end_is_not_waited_for(
    house: Kitchen, plain: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    async with house.connected(token, HOST, plain.port) as client:
        await client.say(b"\x16\x03\x01\x02\x00\x01")
        assert (await client.reader.read())[:1] == b"\x15"
    assert (await house.line("egress.connect"))["reason"] == "too_slow"


async def test_a_client_that_connects_and_says_nothing_is_let_go(
    house: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    async with house.client() as client:
        assert await client.reader.read() == b""


async def test_a_body_that_stands_still_is_not_waited_for(
    house: Kitchen, plain: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "BODY_IDLE_S", 0.2)
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    authority = f"{HOST}:{plain.port}"
    async with house.client() as client:
        more = (f"Proxy-Authorization: {basic(token)}", "Content-Length: 10")
        await client.say(get(f"http://{authority}/", authority, *more, method="POST") + b"12345")
        assert (await client.head())[0] == 408


async def test_a_tunnel_in_which_nothing_passes_is_closed(house: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(connections, "IDLE_S", 0.2)
    monkeypatch.setattr(connections, "_SILENT_S", 0.01)
    token = await house.grant(network="unrestricted")
    async with serving(silent) as port, house.connected(token, OTHER, port) as client:
        assert await client.reader.read() == b""


async def test_a_grant_has_so_many_connections_and_no_more(house: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    token = await house.grant(network="unrestricted")
    other = await house.grant(network="unrestricted", grant_id="grant_2", session_id="sesn_2")
    clients: list[Client] = []
    async with serving(silent) as port:
        for _ in range(connections.PER_GRANT):
            reader, writer = await asyncio.open_connection("127.0.0.1", house.door.port)
            clients.append(Client(reader, writer))
            await clients[-1].say(connect(OTHER, port, token))
            assert (await clients[-1].head())[0] == 200
        async with house.client() as client:
            assert (await client.ask(connect(OTHER, port, token)))[0] == 429
        async with house.connected(other, OTHER, port):
            pass
        for client in clients:
            await client.close()


async def test_one_that_reads_nothing_fills_no_memory(house: Kitchen) -> None:
    sent = 0
    stuck = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.read(1)
        try:
            while True:
                async with asyncio.timeout(0.5):
                    writer.write(bytes(65536))
                    await writer.drain()
                sent += 65536
        except TimeoutError:
            stuck.set()
            await reader.read()

    token = await house.grant(network="unrestricted")
    async with serving(flood) as port, house.connected(token, OTHER, port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(b"x")
        await stuck.wait()
    assert sent < 32 << 20


async def test_the_audit_full_closes_the_door(house: Kitchen, plain: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.audit, "_failure", "no space left on device")
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    async with house.client() as client:
        assert (await client.ask(connect(HOST, plain.port, token)))[0] == 503
    assert plain.connections == 0
