"""The way out, over real sockets: what was judged is what is connected to."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from galley_vault_proxy.errors import AddressRefused, Unreachable
from galley_vault_proxy.netguard import Netguard, redirect_target

from tests.integration.proxy_tls import Authority

pytestmark = pytest.mark.anyio

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class Names:
    """A resolver whose answers a test chooses, one after another; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@asynccontextmanager
async def upstream(
    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on loopback, and the heads of the requests it got."""
    heads: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], heads
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def client(guard: Netguard) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=guard.transport(), trust_env=False, timeout=5)


async def test_this_machine_is_not_the_outside() -> None:
    async with upstream() as (port, heads), client(Netguard()) as http:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]"):
            with pytest.raises(AddressRefused, match="GALLEY_PROXY_ALLOW_NETS"):
                await http.get(f"http://{host}:{port}/")
        with pytest.raises(AddressRefused):
            await Netguard().connect("127.0.0.1", port)
    assert heads == []


async def test_what_is_opened_is_reached_under_its_own_name() -> None:
    guard = Netguard(LOOPBACK, resolver=Names(["127.0.0.1"]))
    async with upstream() as (port, heads), client(guard) as http:
        assert (await http.get(f"http://api.example:{port}/x")).text == "ok"
        assert f"Host: api.example:{port}".encode() in heads[0]


async def test_a_raw_connection_goes_to_what_was_judged() -> None:
    guard = Netguard(LOOPBACK, resolver=Names(["127.0.0.1"]))
    async with upstream() as (port, _):
        reader, writer = await guard.connect("api.example", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_name_that_leads_inside_is_refused() -> None:
    for addresses in (["169.254.169.254"], ["10.0.0.1", "192.168.0.1"], ["::ffff:10.0.0.1"], ["64:ff9b::a00:1"]):
        with pytest.raises(AddressRefused):
            await Netguard(LOOPBACK, resolver=Names(addresses)).connect("evil.example", 80)


async def test_of_several_addresses_only_the_public_ones_are_tried() -> None:
    guard = Netguard(LOOPBACK, resolver=Names(["10.0.0.1", "127.0.0.1", "169.254.169.254"]))
    assert [str(address) for address in await guard.addresses("mixed.example", 80)] == ["127.0.0.1"]


async def test_a_name_is_asked_once_for_each_connection() -> None:
    """The second answer is the attack: it must never be looked at between judging and connecting."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    guard = Netguard(LOOPBACK, resolver=names)
    async with upstream() as (port, heads), client(guard) as http:
        await http.get(f"http://rebind.example:{port}/")
        assert names.asked == 1
        # The pooled connection was judged; a new one is judged anew.
        await http.get(f"http://rebind.example:{port}/")
        assert (names.asked, len(heads)) == (1, 2)
    async with client(guard) as http:
        with pytest.raises(AddressRefused):
            await http.get(f"http://rebind.example:{port}/")


async def test_a_redirect_to_the_inside_is_judged_like_any_other() -> None:
    async with upstream(b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n") as (port, _):
        guard = Netguard(LOOPBACK, resolver=Names(["127.0.0.1"]))
        async with client(guard) as http:
            with pytest.raises(AddressRefused):
                await http.get(f"http://api.example:{port}/", follow_redirects=True)


async def test_over_tls_the_name_is_asked_for_and_proved(tmp_path: Path) -> None:
    authority, names = Authority(tmp_path), list[str | None]()
    serving = authority.serving("api.example")
    serving.sni_callback = lambda _, name, __: names.append(name)
    guard = Netguard(LOOPBACK, resolver=Names(["127.0.0.1"]))
    async with (
        upstream(tls=serving) as (port, heads),
        httpx2.AsyncClient(transport=guard.transport(ssl_context=authority.trusting()), trust_env=False) as http,
    ):
        assert (await http.get(f"https://api.example:{port}/")).text == "ok"
        assert names == ["api.example"]
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"https://another.example:{port}/")
        assert len(heads) == 1


async def test_over_tls_a_stranger_is_not_believed(tmp_path: Path) -> None:
    guard = Netguard(LOOPBACK, resolver=Names(["127.0.0.1"]))
    async with upstream(tls=Authority(tmp_path).serving("api.example")) as (port, heads), client(guard) as http:
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"https://api.example:{port}/")
    assert heads == []


async def test_what_does_not_answer_is_unreachable() -> None:
    async with upstream() as (port, _):
        pass
    with pytest.raises(Unreachable, match="does not accept"):
        await Netguard(LOOPBACK).connect("127.0.0.1", port)
    async with client(Netguard(LOOPBACK)) as http:
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/")


async def test_what_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="does not resolve"):
        await Netguard().connect("nowhere.invalid", 80)
    async with client(Netguard()) as http:
        with pytest.raises(httpx2.ConnectError, match="does not resolve"):
            await http.get("http://nowhere.invalid/")


async def test_a_numeric_spelling_of_loopback_is_no_host() -> None:
    async with client(Netguard()) as http:
        for host in ("2130706433", "0x7f.1", "0177.0.0.1"):
            with pytest.raises((httpx2.ConnectError, httpx2.InvalidURL, AddressRefused)):
                await http.get(f"http://{host}/")


async def test_an_answer_that_breaks_off_is_an_error_of_the_client_library() -> None:
    short = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok"
    async with upstream(short) as (port, _), client(Netguard(LOOPBACK)) as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.get(f"http://127.0.0.1:{port}/", timeout=0.2)


@pytest.mark.parametrize(
    ("source", "location", "target"),
    [
        ("https://a.example/x", "/y", "https://a.example/y"),
        ("https://a.example/x", "https://b.example/", "https://b.example/"),
        ("http://a.example/", "https://a.example/", "https://a.example/"),
    ],
)
async def test_a_redirect_may_lead_on(source: str, location: str, target: str) -> None:
    assert str(redirect_target(httpx2.URL(source), location)) == target


@pytest.mark.parametrize(
    "location",
    [
        "http://a.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user:pw@a.example/",
        "https://" + "x" * 3000,
        "https://a b/",
        "https://2130706433/",
    ],
)
async def test_a_redirect_may_not_lead_anywhere(location: str) -> None:
    with pytest.raises(AddressRefused):
        redirect_target(httpx2.URL("https://a.example/"), location)
