"""Hosts with a credential or with rules: what is swapped, what is redacted, what is refused, and what still works."""

import asyncio
import base64
import gzip
import json
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from galley_vault_proxy.egress import upstream
from galley_vault_proxy.grant.token import HostRule

from tests.integration.egress_kit import (
    HOST,
    OTHER,
    PLACEHOLDER,
    SECRET,
    Answer,
    Client,
    Host,
    Kitchen,
    Seen,
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
async def api(house: Kitchen) -> AsyncIterator[Host]:
    async with host(house.authority.server_context(HOST, OTHER, "127.0.0.1")) as served:
        yield served


@asynccontextmanager
async def inside(house: Kitchen, served: Host, name: str = HOST, **rule: tuple[str, ...]) -> AsyncIterator[Client]:
    """A client in TLS to a host of the door's."""
    token = await house.grant(HostRule(name, ports=(served.port,), **rule))
    async with house.intercepted(token, name, served.port) as client:
        yield client


KEYED = f"X-Key: {PLACEHOLDER}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIPPED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"


def to(served: Host, name: str = HOST) -> str:
    return f"{name}:{served.port}"


def post(served: Host, body: bytes, *more: str) -> bytes:
    return get("/", to(served), f"Content-Length: {len(body)}", *more, method="POST") + body


# Out


async def test_the_placeholder_in_a_header_becomes_the_secret(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        status, _, _ = await client.ask(get("/", to(api), KEYED, f"Authorization: Bearer {PLACEHOLDER}"))
    assert status == 200
    assert api.seen[0].header("x-key") == SECRET
    assert api.seen[0].header("authorization") == f"Bearer {SECRET}"


async def test_the_placeholder_in_basic_credentials_becomes_the_secret(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        await client.ask(get("/", to(api), f"Authorization: {basic(PLACEHOLDER, 'x-access-token')}"))
    assert api.seen[0].header("authorization") == basic(SECRET, "x-access-token")


async def test_in_a_json_body_the_secret_is_written_as_json(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        body = json.dumps({"key": PLACEHOLDER}).encode()
        status, _, _ = await client.ask(post(api, body, "Content-Type: application/json"))
    assert status == 200
    seen = api.seen[0]
    assert json.loads(seen.body) == {"key": SECRET}
    assert seen.header("content-length") == str(len(seen.body))


async def test_in_a_form_the_secret_is_percent_encoded(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        await client.ask(
            post(api, f"a=1&key={PLACEHOLDER}&b=2".encode(), "Content-Type: application/x-www-form-urlencoded")
        )
    assert api.seen[0].body == b"a=1&key=sk-live-7Qm%22x4%2F9%2BZr2%26b&b=2"


async def test_a_chunked_body_is_swapped_across_its_chunks(house: Kitchen, api: Host) -> None:
    half = len(PLACEHOLDER) // 2
    chunks = [b"before ", PLACEHOLDER[:half].encode(), PLACEHOLDER[half:].encode() + b" after"]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    async with inside(house, api) as client:
        await client.ask(get("/", to(api), "Transfer-Encoding: chunked", method="PUT") + body)
    assert api.seen[0].body == b"before " + SECRET.encode() + b" after"


async def test_a_body_too_large_to_be_kept_is_swapped_in_chunks(house: Kitchen, api: Host) -> None:
    body = b"x" * (2 << 20) + PLACEHOLDER.encode()
    async with inside(house, api) as client:
        status, _, _ = await client.ask(post(api, body))
    assert status == 200
    assert api.seen[0].body == b"x" * (2 << 20) + SECRET.encode()
    assert api.seen[0].header("transfer-encoding") == "chunked"


async def test_a_client_that_waits_to_be_told_to_go_on_is(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        body = PLACEHOLDER.encode()
        await client.say(get("/", to(api), f"Content-Length: {len(body)}", "Expect: 100-continue", method="POST"))
        assert (await client.head())[0] == 100
        assert (await client.ask(body))[0] == 200
    assert api.seen[0].body == SECRET.encode()


async def test_in_the_url_nothing_is_swapped(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        status, _, _ = await client.ask(get(f"/{PLACEHOLDER}?key={PLACEHOLDER}", to(api)))
    assert status == 200
    assert api.seen[0].target == f"/{PLACEHOLDER}?key={PLACEHOLDER}"


async def test_where_the_credential_does_not_allow_it_the_placeholder_stays(house: Kitchen, api: Host) -> None:
    house.credentials.found = [credential(locations={"header"})]
    async with inside(house, api) as client:
        await client.ask(post(api, PLACEHOLDER.encode(), KEYED))
    assert (api.seen[0].header("x-key"), api.seen[0].body) == (SECRET, PLACEHOLDER.encode())


async def test_a_rotated_secret_is_used_by_the_next_request(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        await client.ask(get("/", to(api), KEYED))
        house.credentials.found = [credential(secret="another-secret-altogether", version=4)]
        await client.ask(get("/", to(api), KEYED))
    assert [seen.header("x-key") for seen in api.seen] == [SECRET, "another-secret-altogether"]


async def test_every_use_of_a_credential_is_an_audit_line_without_the_secret(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        await client.ask(get("/", to(api), KEYED))
        await client.ask(get("/", to(api)))
    (use,) = await house.lines("credential.use")
    assert (use["credential_id"], use["credential_version"], use["host"]) == ("vcrd_1", 3, to(api))
    assert len(await house.lines("egress.request", "allow")) == 2
    assert SECRET not in json.dumps(await house.lines())


# To another host


@pytest.mark.parametrize("where", ["header", "basic", "url", "body"])
async def test_a_placeholder_towards_another_host_is_refused_and_told(house: Kitchen, api: Host, where: str) -> None:
    request = {
        "header": get("/", to(api, OTHER), KEYED),
        "basic": get("/", to(api, OTHER), f"Authorization: {basic(PLACEHOLDER)}"),
        "url": get(f"/?key={PLACEHOLDER}", to(api, OTHER)),
        "body": get("/", to(api, OTHER), f"Content-Length: {len(PLACEHOLDER)}", method="POST") + PLACEHOLDER.encode(),
    }[where]
    async with inside(house, api, OTHER, methods=("GET", "POST")) as client:
        status, _, body = await client.ask(request)
    assert status == 403
    assert SECRET.encode() not in body
    assert api.seen == []
    line = await house.line("egress.request", "deny")
    assert (line["reason"], line["credential_id"]) == ("placeholder_elsewhere", "vcrd_1")


async def test_a_placeholder_in_plain_http_to_another_host_is_refused(house: Kitchen) -> None:
    async with host() as plain:
        token = await house.grant(HostRule(OTHER, ports=(plain.port,)))
        authority = f"{OTHER}:{plain.port}"
        async with house.client() as client:
            request = get(
                f"http://{authority}/", authority, f"Proxy-Authorization: {basic(token)}", f"X: {PLACEHOLDER}"
            )
            assert (await client.ask(request))[0] == 403
    assert plain.seen == []


async def test_inside_opaque_tls_the_placeholder_is_a_worthless_string(house: Kitchen, api: Host) -> None:
    token = await house.grant(HostRule(OTHER, ports=(api.port,)))
    async with house.connected(token, OTHER, api.port) as client:
        await client.start_tls(house.authority.client_context(), OTHER)
        await client.ask(get("/", OTHER, KEYED))
    assert api.seen[0].header("x-key") == PLACEHOLDER


async def test_no_secret_goes_to_a_public_host_in_the_clear(house: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    # The host of this test is on this machine; seen from a sandbox it could be anywhere.
    monkeypatch.setattr(upstream.Place, "is_public", True)
    async with host() as plain:
        token = await house.grant(HostRule(HOST, ports=(plain.port,)))
        authority = f"{HOST}:{plain.port}"
        async with house.client() as client:
            ask = get(f"http://{authority}/", authority, f"Proxy-Authorization: {basic(token)}")
            assert (await client.ask(ask))[0] == 200
            assert (await client.ask(ask.replace(b"\r\n\r\n", f"\r\nX: {PLACEHOLDER}\r\n\r\n".encode())))[0] == 403
    assert len(plain.seen) == 1
    assert (await house.line("egress.request", "deny"))["reason"] == "cleartext_secret"


# Back


async def test_a_host_that_echoes_what_it_got_does_not_hand_the_secret_over(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        _, headers, body = await client.ask(get("/", to(api), KEYED, f"Authorization: {basic(PLACEHOLDER)}"))
    assert api.seen[0].header("x-key") == SECRET
    assert SECRET.encode() not in body
    assert json.dumps(SECRET).encode() not in body
    assert base64.b64encode(f"any:{SECRET}".encode()) not in body
    assert json.loads(body)["headers"]
    assert "content-length" not in headers


async def test_echoes_in_headers_cookies_and_reasons_are_redacted(house: Kitchen, api: Host) -> None:
    api.answer = raw_answer(
        b"HTTP/1.1 302 see %b\r\nLocation: https://x/?k=%b\r\nSet-Cookie: k=%b\r\nContent-Length: 0\r\n\r\n"
        % ((SECRET.encode(),) * 3)
    )
    async with inside(house, api) as client:
        await client.say(get("/", to(api)))
        head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 302")
    assert SECRET.encode() not in head


def raw_answer(data: bytes, *, in_pieces: int = 0) -> Answer:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(data), in_pieces or len(data)):
            writer.write(data[start : start + (in_pieces or len(data))])
            await writer.drain()

    return answer


async def test_an_echo_split_over_packets_and_chunks_is_redacted(house: Kitchen, api: Host) -> None:
    secret = SECRET.encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b"[" + secret + b"]")
    api.answer = raw_answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", in_pieces=3
    )
    async with inside(house, api) as client:
        _, _, body = await client.ask(get("/", to(api)))
    assert body == b"[[redacted]]"


async def test_identity_is_asked_for_and_gzip_is_undone_all_the_same(house: Kitchen, api: Host) -> None:
    packed = gzip.compress(b"the secret: " + SECRET.encode()) + gzip.compress(b"; and more")
    api.answer = raw_answer(GZIPPED % len(packed) + packed, in_pieces=7)
    async with inside(house, api) as client:
        _, headers, body = await client.ask(get("/", to(api), "Accept-Encoding: gzip, br"))
    assert api.seen[0].header("accept-encoding") == "identity"
    assert "content-encoding" not in headers
    assert body == b"the secret: [redacted]; and more"


@pytest.mark.parametrize("packed", [zlib.compress(b"plain"), zlib.compress(b"plain", wbits=-15)])
async def test_deflate_is_undone_with_and_without_its_header(house: Kitchen, api: Host, packed: bytes) -> None:
    api.answer = raw_answer(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    )
    async with inside(house, api) as client:
        assert (await client.ask(get("/", to(api))))[2] == b"plain"


async def test_a_coding_that_hides_what_is_in_it_is_refused(house: Kitchen, api: Host) -> None:
    api.answer = raw_answer(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc")
    async with inside(house, api) as client:
        status, _, _ = await client.ask(get("/", to(api)))
    assert status == 502


async def test_a_host_with_rules_only_keeps_its_codings(house: Kitchen, api: Host) -> None:
    packed = gzip.compress(b"plain")
    api.answer = raw_answer(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    )
    async with inside(house, api, OTHER, methods=("GET",)) as client:
        _, headers, body = await client.ask(get("/", to(api, OTHER), "Accept-Encoding: gzip"))
    assert api.seen[0].header("accept-encoding") == "gzip"
    assert (headers["content-encoding"], body) == ("gzip", packed)


async def test_a_refused_credential_is_asked_anew(house: Kitchen, api: Host) -> None:
    api.answer = raw_answer(b"HTTP/1.1 401 no\r\nContent-Length: 0\r\n\r\n")
    async with inside(house, api) as client:
        assert (await client.ask(get("/", to(api), KEYED)))[0] == 401
        client.writer.transport.abort()
        await house.line("egress.connect")
    assert house.credentials.refreshed == [("vcrd_1", 3)]


# Rules


async def test_rules_are_kept_for_every_request_of_a_connection(house: Kitchen, api: Host) -> None:
    async with inside(house, api, OTHER, methods=("GET",), paths=("/repos",)) as client:
        assert (await client.ask(get("/repos/x?y=/../admin", to(api, OTHER))))[0] == 200
        assert (await client.ask(get("/admin", to(api, OTHER))))[0] == 403
    assert [seen.target for seen in api.seen] == ["/repos/x?y=/../admin"]
    assert (await house.line("egress.request", "deny"))["reason"] == "request_not_granted"


async def test_another_method_is_refused(house: Kitchen, api: Host) -> None:
    async with inside(house, api, OTHER, methods=("GET",)) as client:
        assert (await client.ask(get("/", to(api, OTHER), method="DELETE")))[0] == 403
    assert api.seen == []


# What else must work


async def test_the_certificate_of_the_host_is_verified(house: Kitchen) -> None:
    async with host(house.authority.server_context("not-the-host.test")) as liar, inside(house, liar) as client:
        status, _, body = await client.ask(get("/", to(liar), KEYED))
    assert status == 502
    assert b"certificate" in body
    assert liar.seen == []


async def test_connections_are_kept_on_both_sides(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        for _ in range(3):
            assert (await client.ask(get("/", to(api))))[0] == 200
    assert api.connections == 1


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(house: Kitchen, api: Host) -> None:
    api.answer = raw_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")  # and closes, without having said so
    async with inside(house, api) as client:
        for _ in range(3):
            assert (await client.ask(get("/", to(api))))[2] == b"ok"
    assert api.connections == 3


async def test_pipelined_requests_are_answered_in_order(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        await client.say(b"".join(get(f"/{number}", to(api)) for number in range(3)))
        answers = [await client.answer() for _ in range(3)]
    assert [json.loads(body)["target"] for _, _, body in answers] == ["/0", "/1", "/2"]


async def test_head_has_a_length_and_no_body(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        await client.say(get("/", to(api), method="HEAD"))
        status, headers = await client.head()
        assert (status, "content-length" in headers) == (200, True)
        assert (await client.ask(get("/", to(api))))[0] == 200


async def test_an_answer_that_ends_with_the_connection_is_whole(house: Kitchen, api: Host) -> None:
    api.answer = raw_answer(b"HTTP/1.0 200 OK\r\n\r\nto the end", in_pieces=4)
    async with inside(house, api) as client:
        assert (await client.ask(get("/", to(api))))[2] == b"to the end"


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(house: Kitchen, api: Host) -> None:
    api.answer = raw_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all")
    async with inside(house, api) as client:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError, ssl.SSLError)):
            await client.ask(get("/", to(api)))


async def test_events_arrive_as_they_are_sent(house: Kitchen, api: Host) -> None:
    go_on = asyncio.Event()

    async def stream(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: two\n\n")

    api.answer = stream
    async with inside(house, api) as client:
        await client.say(get("/", to(api)))
        await client.head()
        assert await client.reader.readline() == b"b\r\n"
        assert await client.reader.readline() == b"data: one\n"
        go_on.set()
        assert b"data: two" in await client.reader.readuntil(b"0\r\n\r\n")


async def test_a_websocket_is_let_through_and_its_echoes_are_redacted(house: Kitchen) -> None:
    served = Host()

    async def websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        served.raw += head.encode()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert await reader.readexactly(6) == b"\x81\x80\x00\x00\x00\x00"
        secret = SECRET.encode()
        writer.write(b"\x01\x05hello" + b"\x89\x02hi" + b"\x00\x03" + secret[:3])
        await writer.drain()
        writer.write(b"\x80" + bytes([len(secret) - 3]) + secret[3:] + b"\x88\x00")
        await writer.drain()
        await reader.read()

    handshake = (
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: abc",
        "Sec-WebSocket-Extensions: permessage-deflate",
        f"Authorization: Bearer {PLACEHOLDER}",
    )
    async with (
        serving(websocket, house.authority.server_context(HOST)) as served.port,
        inside(house, served) as client,
    ):
        await client.say(get("/chat", to(served), *handshake))
        status, headers = await client.head()
        assert (status, headers["upgrade"]) == (101, "websocket")
        await client.say(b"\x81\x80\x00\x00\x00\x00")
        message, pings = await read_messages(client)
    assert (message, pings) == (b"hello[redacted]", [b"hi"])
    assert SECRET.encode() in served.raw
    assert b"permessage" not in served.raw


async def read_messages(client: Client) -> tuple[bytes, list[bytes]]:
    message = b""
    pings: list[bytes] = []
    while True:
        first, length = await client.reader.readexactly(2)
        payload = await client.reader.readexactly(length)
        match first & 0x0F:
            case 8:
                return message, pings
            case 9:
                pings.append(payload)
            case _:
                message += payload


async def test_other_upgrades_are_left_out(house: Kitchen, api: Host) -> None:
    async with inside(house, api) as client:
        upgrade = get(
            "/",
            to(api),
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        )
        assert (await client.ask(upgrade))[0] == 200
    assert not {"upgrade", "http2-settings"} & {name for name, _ in api.seen[0].headers}


async def test_a_sealed_store_lets_nothing_through_and_recovers(house: Kitchen, api: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(api.port,)))
    house.credentials.is_sealed = True
    async with house.client() as client:
        status, _, body = await client.ask(connect(HOST, api.port, token))
    assert status == 503
    assert b"sealed" in body
    house.credentials.is_sealed = False
    async with house.intercepted(token, HOST, api.port) as client:
        house.credentials.is_sealed = True
        assert (await client.ask(get("/", to(api), f"X: {PLACEHOLDER}")))[0] == 503
    assert api.seen == []
