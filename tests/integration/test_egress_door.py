"""The door with its plainest visitors: who gets through, to where, and what passes untouched."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from galley_vault_proxy.grant.token import HostRule, ServerRule

from tests.integration.egress_kit import (
    HOST,
    OTHER,
    Host,
    Kitchen,
    basic,
    connect,
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
    async with kitchen(tmp_path) as opened:
        yield opened


@pytest.fixture
async def plain() -> AsyncIterator[Host]:
    async with host() as served:
        yield served


@pytest.fixture
async def secure(house: Kitchen) -> AsyncIterator[Host]:
    async with host(house.authority.server_context(HOST, OTHER, "127.0.0.1")) as served:
        yield served


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_tls_to_a_granted_host_passes_untouched(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(secure.port,)))
    async with house.connected(token, HOST, secure.port) as client:
        await client.start_tls(house.authority.client_context(), HOST)
        status, _, body = await client.ask(get("/a?b=c", HOST))
    assert status == 200
    assert json.loads(body)["target"] == "/a?b=c"


async def test_a_connection_is_one_audit_line_with_its_bytes(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(secure.port,)))
    async with house.connected(token, HOST, secure.port) as client:
        await client.start_tls(house.authority.client_context(), HOST)
        await client.ask(get("/", HOST))
    line = await house.line("egress.connect")
    assert (line["decision"], line["host"], line["session_id"]) == ("allow", f"{HOST}:{secure.port}", "sesn_1")
    up, down = line["bytes_up"], line["bytes_down"]
    assert isinstance(up, int)
    assert isinstance(down, int)
    assert up > 200
    assert down > 200
    assert line["bytes"] == up + down
    assert len(await house.lines()) == 1


async def test_plain_http_goes_by_the_absolute_form(house: Kitchen, plain: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    authority = f"{HOST}:{plain.port}"
    async with house.client() as client:
        request = get(
            f"http://{authority}/x?y",
            authority,
            f"Proxy-Authorization: {basic(token)}",
            "Connection: x-gone",
            "X-Gone: 1",
            "X-Kept: 2",
        )
        status, _, _ = await client.ask(request)
        assert status == 200
        status, _, _ = await client.ask(request)  # the connection is kept
        assert status == 200
    assert plain.connections == 1
    seen = plain.seen[0]
    assert (seen.target, seen.header("host"), seen.header("x-kept")) == ("/x?y", authority, "2")
    assert seen.header("x-gone") is None
    assert seen.header("proxy-authorization") is None


async def test_http_inside_connect_is_http_too(house: Kitchen, plain: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    async with house.connected(token, HOST, plain.port) as client:
        status, _, _ = await client.ask(get("/", f"{HOST}:{plain.port}"))
    assert status == 200


async def test_a_body_goes_out_and_comes_back_whole(house: Kitchen, plain: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    authority = f"{HOST}:{plain.port}"
    body = bytes(range(256)) * 4000
    async with house.client() as client:
        head = get(
            f"http://{authority}/",
            authority,
            f"Proxy-Authorization: {basic(token)}",
            f"Content-Length: {len(body)}",
            method="POST",
        )
        status, _, answer = await client.ask(head + body)
    assert status == 200
    assert json.loads(answer)["body"].encode("latin-1") == body


@pytest.mark.parametrize("authorization", ["Bearer {}", "Basic"])
async def test_a_grant_comes_as_bearer_or_as_password(house: Kitchen, plain: Host, authorization: str) -> None:
    token = await house.grant(HostRule(HOST, ports=(plain.port,)))
    value = basic(token, "whoever") if authorization == "Basic" else authorization.format(token)
    async with house.client() as client:
        await client.say(f"CONNECT {HOST}:{plain.port} HTTP/1.0\r\nProxy-Authorization: {value}\r\n\r\n".encode())
        assert (await client.head())[0] == 200


async def test_without_a_grant_the_client_is_asked_for_one(house: Kitchen) -> None:
    async with house.client() as client:
        status, headers, body = await client.ask(get(f"http://{HOST}/", HOST))
    assert status == 407
    assert "proxy-authenticate" in headers
    assert b"Proxy-Authorization" in body
    line = await house.line("egress.request")
    assert (line["decision"], line["reason"], line["who"]) == ("deny", "grant_missing", "nobody")


async def test_a_host_that_is_not_granted_is_refused_before_it_is_resolved(house: Kitchen) -> None:
    token = await house.grant(HostRule(HOST))
    async with house.client() as client:
        status, _, body = await client.ask(connect(OTHER, 443, token))
    assert status == 403
    assert OTHER.encode() in body
    assert house.names.asked == []
    assert (await house.line("egress.connect"))["reason"] == "host_not_granted"


async def test_a_port_that_is_not_granted_is_refused(house: Kitchen) -> None:
    token = await house.grant(HostRule(HOST))
    async with house.client() as client:
        status, _, _ = await client.ask(connect(HOST, 22, token))
    assert status == 403
    assert (await house.line("egress.connect"))["reason"] == "port_not_granted"


async def test_unrestricted_reaches_any_host_and_port(house: Kitchen, secure: Host) -> None:
    token = await house.grant(network="unrestricted")
    async with house.connected(token, OTHER, secure.port) as client:
        await client.start_tls(house.authority.client_context(), OTHER)
        assert (await client.ask(get("/", OTHER)))[0] == 200


async def test_presets_open_the_package_registries_and_the_grants_own_servers(house: Kitchen) -> None:
    house.names.table = {"pypi.org": ["10.0.0.1"], "mcp.test": ["10.0.0.1"], "evil.test": ["10.0.0.1"]}
    token = await house.grant(
        presets=("package_managers", "mcp_servers"), servers=(ServerRule("one", "https://mcp.test/mcp"),)
    )
    reasons = {}
    for name in ("pypi.org", "mcp.test", "evil.test"):
        async with house.client() as client:
            assert (await client.ask(connect(name, 443, token)))[0] == 403
        reasons[name] = (await house.lines())[-1]["reason"]
    # The first two are allowed, and then found to lead to a private address.
    assert reasons == {"pypi.org": "address_refused", "mcp.test": "address_refused", "evil.test": "host_not_granted"}


async def test_a_server_that_speaks_first_is_heard_when_anything_may_pass(house: Kitchen) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        assert await reader.readline() == b"QUIT\r\n"
        writer.close()

    token = await house.grant(network="unrestricted")
    async with serving(speak) as port, house.connected(token, HOST, port) as client:
        assert await client.reader.readline() == b"220 hello\r\n"
        await client.say(b"QUIT\r\n")
        assert await client.reader.read() == b""


async def test_half_a_connection_may_end_before_the_other(house: Kitchen) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(-1)
        writer.write(str(len(data)).encode())
        writer.close()

    token = await house.grant(network="unrestricted")
    async with serving(count) as port, house.connected(token, HOST, port) as client:
        await client.say(b"\0" * 1_000_000)
        client.writer.write_eof()
        assert await client.reader.read() == b"1000000"


async def test_a_host_that_does_not_answer_is_a_bad_gateway(house: Kitchen) -> None:
    async with serving(idle) as port:
        pass
    token = await house.grant(HostRule(HOST, ports=(port,)))
    async with house.client() as client:
        assert (await client.ask(connect(HOST, port, token)))[0] == 502


async def test_a_revoked_grant_closes_its_tunnels_within_a_second(house: Kitchen, secure: Host) -> None:
    token = await house.grant(HostRule(HOST, ports=(secure.port,)))
    async with house.connected(token, HOST, secure.port) as client:
        await client.start_tls(house.authority.client_context(), HOST)
        await client.ask(get("/", HOST))
        async with asyncio.timeout(1):
            await house.registry.revoke_grant("grant_1")
            with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
                await client.reader.readexactly(1)
    line = await house.line("egress.connect")
    assert (line["decision"], line["reason"]) == ("deny", "grant_revoked")


async def test_a_revoked_grant_closes_plain_requests_under_way(house: Kitchen) -> None:
    begun = asyncio.Event()

    async def never(seen: object, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with host(answer=never) as slow:
        token = await house.grant(HostRule(HOST, ports=(slow.port,)))
        authority = f"{HOST}:{slow.port}"
        async with house.client() as client:
            await client.say(get(f"http://{authority}/", authority, f"Proxy-Authorization: {basic(token)}"))
            await begun.wait()
            await house.registry.revoke_session("sesn_1")
            status, _, _ = await client.answer()
    assert status == 407


async def test_the_door_closes_with_connections_open(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(idle))
        async with kitchen(tmp_path) as house:
            token = await house.grant(network="unrestricted")
            client = await stack.enter_async_context(house.connected(token, HOST, port))
            assert house.door.connections == 1
        assert house.door.connections == 0
        assert await client.reader.read() == b""
