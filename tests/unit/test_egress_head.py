"""The head of a request to a proxy: one meaning, or none."""

import base64

import pytest
from galley_vault_proxy.egress.head import (
    MAX_FIELDS,
    BadRequest,
    HeadTooLarge,
    Origin,
    absolute_target,
    asks_for_websocket,
    authority_of,
    check_framing,
    check_host,
    check_lines,
    connect_target,
    end_to_end,
    grant_token,
)
from galley_vault_proxy.errors import GrantRefused

HOST = (b"host", b"a.test")


def head(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@pytest.mark.parametrize(
    "raw",
    [
        head("GET / HTTP/1.1", "Host: a.test", "X:", "Y: \t z \xe4"),
        head("CONNECT a.test:443 HTTP/1.0"),
        head("M-SEARCH * HTTP/1.1", "Host:a"),
    ],
)
def test_what_everybody_reads_alike_passes(raw: bytes) -> None:
    check_lines(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        head("GET / HTTP/1.1", "X: a", " b"),
        head("GET / HTTP/1.1", "X: a", "\tTransfer-Encoding: chunked"),
        head("GET / HTTP/1.1", "X : a"),
        head("GET / HTTP/1.1", ": a"),
        head("GET / HTTP/1.1", "X\x0b: a"),
        head("GET / HTTP/1.1", "no colon"),
        head("GET  / HTTP/1.1"),
        head("GET / HTTP/1.1 "),
        head("GET / HTTP/2.0"),
        head("GET /a b HTTP/1.1"),
        head("GET /ä HTTP/1.1"),
        head("GET /"),
        head("", "GET / HTTP/1.1"),
        head("GET / http/1.1"),
    ],
)
def test_what_two_servers_could_read_in_two_ways_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        check_lines(raw)


def test_too_many_fields_are_refused() -> None:
    check_lines(head("GET / HTTP/1.1", *["X: y"] * MAX_FIELDS))
    with pytest.raises(HeadTooLarge):
        check_lines(head("GET / HTTP/1.1", *["X: y"] * (MAX_FIELDS + 1)))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [HOST, HOST],
        [HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        [HOST, (b"content-length", b"1"), (b"content-length", b"1")],
        [HOST, (b"content-length", b"1, 1")],
        [HOST, (b"content-length", b"+1")],
        [HOST, (b"content-length", b"-1")],
        [HOST, (b"content-length", b"0x1")],
        [HOST, (b"content-length", b"9" * 19)],
        [HOST, (b"transfer-encoding", b"gzip, chunked")],
        [HOST, (b"transfer-encoding", b"chunked, identity")],
        [HOST, (b"transfer-encoding", b"xchunked")],
        [HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_a_body_whose_length_is_not_said_once_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadRequest):
        check_framing(headers, http_1_0=False)


def test_old_requests_need_no_host_and_have_no_chunks() -> None:
    check_framing([], http_1_0=True)
    with pytest.raises(BadRequest):
        check_framing([(b"transfer-encoding", b"chunked")], http_1_0=True)


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def authorization(value: str) -> list[tuple[bytes, bytes]]:
    return [(b"proxy-authorization", value.encode())]


@pytest.mark.parametrize("value", ["Bearer tok", "bearer  tok", f"Basic {basic('any:tok')}", f"BASIC {basic(':tok')}"])
def test_the_grant_is_found_however_it_is_sent(value: str) -> None:
    assert grant_token(authorization(value)) == "tok"


@pytest.mark.parametrize("value", ["Digest x", "Basic !", "tok", "Basic"])
def test_what_carries_no_grant_is_refused(value: str) -> None:
    with pytest.raises(GrantRefused) as refused:
        grant_token(authorization(value))
    assert refused.value.reason == "malformed"


def test_no_authorization_is_told_from_a_wrong_one() -> None:
    with pytest.raises(GrantRefused) as refused:
        grant_token([])
    assert refused.value.reason == "missing"


def test_two_authorizations_are_refused() -> None:
    with pytest.raises(BadRequest):
        grant_token(authorization("Bearer a") + authorization("Bearer b"))


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        ("Api.Test.:443", Origin("https", "api.test", 443)),
        ("[2001:DB8::1]:8443", Origin("https", "2001:db8::1", 8443)),
        ("10.0.0.1:22", Origin("https", "10.0.0.1", 22)),
    ],
)
def test_a_connect_names_host_and_port(target: str, origin: Origin) -> None:
    assert connect_target(target) == origin


NO_TARGETS = [
    "a.test",
    "a.test:",
    "a.test:0",
    "a.test:65536",
    "a.test:+1",
    ":443",
    "a.test:443/x",
    "user@a.test:443",
    "0x7f.1:443",
    "127.1:443",
    "2130706433:443",
    "[::1:443",
    "/path",
    "http://a.test/",
    "a%00.test:443",
    "-a.test:443",
]
NO_URLS = [
    "/x",
    "https://a.test/",
    "ftp://a.test/",
    "http://u:p@a.test/",
    "http://a.test/#f",
    "http:///x",
    "http://a.test:x/",
    "http://a.test\\@b.test/",
    "*",
]


@pytest.mark.parametrize("target", NO_TARGETS)
def test_a_connect_that_names_something_else_is_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        connect_target(target)


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("http://a.test", Origin("http", "a.test", 80), "/"),
        ("HTTP://A.test:8080/x?y=/z", Origin("http", "a.test", 8080), "/x?y=/z"),
        ("http://a.test?q", Origin("http", "a.test", 80), "/?q"),
        ("http://[::1]/x", Origin("http", "::1", 80), "/x"),
    ],
)
def test_an_absolute_target_is_origin_and_path(url: str, origin: Origin, target: str) -> None:
    assert absolute_target(url) == (origin, target)


@pytest.mark.parametrize("url", NO_URLS)
def test_another_absolute_target_is_refused(url: str) -> None:
    with pytest.raises(BadRequest):
        absolute_target(url)


@pytest.mark.parametrize("value", [b"a.test", b"A.TEST:443", b"a.test."])
def test_host_may_spell_the_origin_in_its_ways(value: bytes) -> None:
    check_host([(b"host", value)], Origin("https", "a.test", 443))


@pytest.mark.parametrize("value", [b"b.test", b"a.test:80", b"", b"a.test:443:443", b"a.test, b.test", b"x@a.test"])
def test_host_that_is_another_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest):
        check_host([(b"host", value)], Origin("https", "a.test", 443))


def test_what_is_between_two_hops_stays_there() -> None:
    headers = [
        (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Proxy-Authorization", b"Bearer x"),
        (b"TE", b"trailers"),
        (b"Upgrade", b"h2c"),
        (b"Accept", b"*/*"),
    ]
    assert end_to_end(headers) == [(b"Accept", b"*/*")]


def test_only_a_websocket_is_an_upgrade() -> None:
    assert asks_for_websocket([(b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"WebSocket")])
    assert not asks_for_websocket([(b"upgrade", b"websocket")])
    assert not asks_for_websocket([(b"connection", b"upgrade"), (b"upgrade", b"websocket, h2c")])


def test_an_authority_is_written_as_host_wants_it() -> None:
    assert authority_of("a.test", "http").authority == "a.test"
    assert authority_of("[::1]:443", "https").authority == "[::1]"
    assert Origin("http", "::1", 443).authority == "[::1]:443"
