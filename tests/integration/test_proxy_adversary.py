"""An adversary with a token in hand, or without one, on the sockets themselves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from galley_vault_proxy.audit import AuditQuery
from galley_vault_proxy.grant.narrow import narrow
from galley_vault_proxy.http import connection
from galley_vault_proxy.preamble import greeting
from galley_vault_proxy.secret import Secret

from tests.integration.proxy_kit import KEY, Spine, spine

pytestmark = pytest.mark.anyio

MINT = b'{"session_id":"x","expires_in":60}'


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Spine]:
    async with spine(tmp_path_factory.mktemp("adversary")) as opened:
        yield opened


async def through(running: Spine, tunnel: str | None, sent: bytes, *, key: str = KEY) -> bytes:
    """Send bytes over the Unix socket, through a tunnel or not, and return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(running.uds))
    try:
        if tunnel is not None:
            writer.write(greeting(Secret(key), tunnel))
        writer.write(sent)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


async def over_tcp(running: Spine, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(running.address.host, running.address.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: a", "connection: close", *headers, "", ""]).encode()


async def test_a_token_works_through_its_own_tunnel_only(running: Spine) -> None:
    token = await running.issue(tunnel="tun_a")
    bearer = f"authorization: Bearer {token}"
    assert b"\r\n\r\nok" in await through(running, "tun_a", get("/mcp/x", bearer))
    assert b"\r\n\r\ntunnel" in await through(running, "tun_b", get("/mcp/x", bearer))
    assert b"\r\n\r\ntunnel" in await through(running, None, get("/mcp/x", bearer))
    assert b"\r\n\r\ntunnel" in await over_tcp(running, get("/mcp/x", bearer))


async def test_a_sandbox_cannot_claim_another_tunnel(running: Spine) -> None:
    token = await running.issue(tunnel="tun_a")
    request = get("/mcp/x", f"authorization: Bearer {token}")
    # A greeting of its own, with a key of its own; then a right one after the real one; then as a header.
    assert (await through(running, "tun_a", request, key="guess-guess-guess")).startswith(b"HTTP/1.1 401")
    second = await through(running, "tun_b", greeting(Secret(KEY), "tun_a") + request)
    assert second.startswith(b"HTTP/1.1 400")
    smuggled = get("/mcp/x", f"authorization: Bearer {token}", "galley-tunnel: tun_a", "x-galley-tunnel: tun_a")
    assert b"\r\n\r\ntunnel" in await through(running, "tun_b", smuggled)


async def test_over_tcp_nobody_speaks_for_a_tunnel(running: Spine) -> None:
    token = await running.issue(tunnel="tun_a")
    sent = greeting(Secret(KEY), "tun_a") + get("/mcp/x", f"authorization: Bearer {token}")
    assert (await over_tcp(running, sent)).startswith(b"HTTP/1.1 400")


async def test_a_tunnel_stays_what_it_was_for_every_request_of_a_connection(running: Spine) -> None:
    token = await running.issue(tunnel="tun_b")
    first = get("/mcp/x").replace(b"connection: close\r\n", b"")
    second = get("/mcp/x", f"authorization: Bearer {token}")
    answers = await through(running, "tun_b", first + second)
    assert answers.index(b"missing") < answers.index(b"\r\n\r\nok")


async def test_a_revoked_token_is_worthless_at_once(running: Spine) -> None:
    token = await running.issue("sesn_replay")
    child = narrow(token, expires_in=60)
    async with running.client(child) as client:
        assert (await client.get("/mcp/x")).text == "ok"
        async with running.client() as service:
            await service.delete("/v1/sessions/sesn_replay")
        # On the connection that was open before, too.
        answer = await client.get("/mcp/x")
        assert (answer.status_code, answer.text) == (401, "revoked")


async def test_an_open_answer_ends_when_its_session_does(running: Spine) -> None:
    token, loop = await running.issue("sesn_open"), asyncio.get_running_loop()
    async with running.client(token) as client, client.stream("GET", "/mcp/x/stream") as answer:
        parts = answer.aiter_bytes()
        assert await anext(parts) == b"."
        start = loop.time()
        async with running.client() as service:
            await service.delete("/v1/sessions/sesn_open")
        async with asyncio.timeout(5):
            assert await anext(parts) == b"revoked"
        assert loop.time() - start < 1


async def test_of_two_tokens_in_one_request_none_counts(running: Spine) -> None:
    token = await running.issue()
    twice = get("/mcp/x", "authorization: Bearer nothing", f"authorization: Bearer {token}")
    assert b"malformed" in await over_tcp(running, twice)


async def test_of_two_service_keys_in_one_request_none_counts(running: Spine) -> None:
    answer = await over_tcp(running, get("/v1/audit", f"x-api-key: {KEY}", f"x-api-key: {KEY}"))
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 34\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 34\r\n",
        b"content-length: 34\r\ncontent-length: 5\r\n",
        b"content-length: +34\r\n",
        b"content-length: 34, 34\r\n",
        b"content-length : 34\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"x: y\r\n content-length: 34\r\ncontent-length: 34\r\n",
        b"x: a\nx-api-key: b\r\ncontent-length: 34\r\n",
        b"x: a\x00b\r\ncontent-length: 34\r\n",
    ],
)
async def test_a_request_of_two_meanings_makes_no_grant(running: Spine, framing: bytes) -> None:
    head = b"POST /v1/grants HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
    sent = head + b"x-api-key: " + KEY.encode() + b"\r\n" + framing + b"\r\n" + MINT
    answer = await over_tcp(running, sent)
    assert not answer.startswith(b"HTTP/1.1 200"), answer
    assert "x" not in [session.id for session in running.registry.sessions()]


@pytest.mark.parametrize("path", ["//v1/audit", "/v1//audit", "/V1/audit", "/mcp/../v1/audit", "/mcp/%2e%2e/v1/audit"])
async def test_no_spelling_of_a_path_gets_around_the_key(running: Spine, path: str) -> None:
    answer = await over_tcp(running, get(path))
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 404", b"HTTP/1.1 400")), answer
    assert b'"data"' not in answer


async def test_an_upgrade_is_no_way_in(running: Spine) -> None:
    sent = get(
        "/v1/audit", "upgrade: websocket", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", "sec-websocket-version: 13"
    )
    answer = await over_tcp(running, sent.replace(b"connection: close", b"connection: upgrade, close"))
    assert not answer.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")), answer


async def test_an_endless_head_is_cut_off(running: Spine) -> None:
    reader, writer = await asyncio.open_connection(running.address.host, running.address.port)
    writer.write(b"GET /v1/audit HTTP/1.1\r\nhost: a\r\nx: ")
    sent = 0
    try:
        async with asyncio.timeout(10):
            while not reader.at_eof() and sent < 64 << 20:
                writer.write(b"y" * 65_536)
                await writer.drain()
                sent += 65_536
                await asyncio.wait([asyncio.get_running_loop().run_in_executor(None, lambda: None)])
    except ConnectionError:
        pass
    assert sent < 8 << 20
    writer.close()


async def test_many_headers_are_as_bad_as_a_long_one(running: Spine) -> None:
    try:
        answer = await over_tcp(running, get("/v1/audit", *[f"x-{n}: {'y' * 100}" for n in range(20_000)]))
    except ConnectionError:
        return
    assert answer.startswith(b"HTTP/1.1 431")


async def test_a_head_that_never_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    monkeypatch.setattr(connection.connection_class, "__kwdefaults__", {"head_s": 0.3})
    async with spine(tmp_path) as running:
        for sent in (b"", b"GET /v1/audit HTTP/1.1\r\nhost: a\r\n", b"\r\n"):
            answer = await over_tcp(running, sent)
            assert answer.startswith(b"HTTP/1.1 408")
        answer = await through(running, None, greeting(Secret(KEY), "tun_1")[:30])
        assert answer.startswith(b"HTTP/1.1 408")


async def test_a_greeting_that_never_ends_is_cut_off(running: Spine) -> None:
    answer = await through(running, None, b"GALLEY-TUNNEL/1 " + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 401")


async def test_guessing_the_key_takes_the_same_way_every_time(running: Spine) -> None:
    async with httpx2.AsyncClient(base_url=running.address.url) as client:
        near = await client.get("/v1/audit", headers={"x-api-key": KEY[:-1] + "x"})
        far = await client.get("/v1/audit", headers={"x-api-key": "x"})
    assert near.json()["error"] == far.json()["error"]


async def test_who_came_without_the_key_is_in_the_audit_log(running: Spine) -> None:
    before = await running.audit.query(AuditQuery(decision="deny"))
    await over_tcp(running, get("/v1/audit", "x-api-key: guess-guess-guess"))
    (line,) = (await running.audit.query(AuditQuery(decision="deny", after=before.next_after))).data
    assert (line["action"], line["who"], line["reason"]) == ("admin", "nobody", "unauthenticated")


async def test_an_answer_in_two_writes_does_not_wait_for_an_acknowledgement(running: Spine) -> None:
    loop, took = asyncio.get_running_loop(), []
    async with running.client() as client:
        for _ in range(20):
            start = loop.time()
            await client.get("/healthz")
            took.append(loop.time() - start)
    assert sorted(took)[10] < 0.03
