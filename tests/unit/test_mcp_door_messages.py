"""What the door reads and writes: JSON-RPC without two readings, events cut without changing a byte, headers."""

import json

import pytest
from galley_vault_proxy.mcp_door.headers import check_routing, decoded, downward, encoded, single, upward
from galley_vault_proxy.mcp_door.jsonrpc import Refusal, read_from_server, read_message
from galley_vault_proxy.mcp_door.sse import EventSplitter, EventTooLarge, read_event, with_data
from galley_vault_proxy.mcp_door.wire import META_VERSION

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo"}}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"v":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"v":1e999}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"v":' + b"9" * 5000 + b"}}", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"v":"\\ud800"}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"v":' + b"[" * 65 + b"]" * 65 + b"}}", -32700),
        (b"[" * 100_000, -32700),
        (b'\xff{"jsonrpc":"2.0"}', -32700),
        (json.dumps([CALL]).encode(), -32600),
        (b'"text"', -32600),
        (b'{"id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":["ping"]}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
    ],
)
def test_what_two_parsers_may_read_in_two_ways_is_refused(text: bytes, code: int) -> None:
    with pytest.raises(Refusal) as refused:
        read_message(text)
    assert refused.value.code == code


def test_a_message_is_known_for_what_it_is() -> None:
    assert read_message(json.dumps(CALL).encode()).kind == "request"
    assert read_message(b'{"jsonrpc":"2.0","method":"notifications/initialized"}').kind == "notification"
    assert read_message(b'{"jsonrpc":"2.0","id":"a","result":{}}').kind == "answer"
    assert read_message(b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}').kind == "answer"


def test_a_refused_request_is_answered_under_its_own_id() -> None:
    with pytest.raises(Refusal) as refused:
        read_message(b'{"jsonrpc":"2.0","id":7,"method":"ping","params":3}')
    assert refused.value.id == 7


def test_a_server_that_says_a_thing_twice_is_not_believed() -> None:
    with pytest.raises(ValueError, match="same key twice"):
        read_from_server(b'{"result":{"tools":[]},"result":{"tools":[1]}}')


STREAM = (
    b": ping\r\n\r\n"
    b'id: 1\nevent: message\ndata: {"a":1}\n\n'
    b"id: 2\rdata: x\rdata: y\r\r"
    b"retry: 100\n\n"
    b"data:no blank\r\n\r\n"
    b"\n\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_events_come_out_byte_for_byte_however_they_are_cut(size: int) -> None:
    splitter = EventSplitter(1000)
    events = [raw for i in range(0, len(STREAM), size) for raw in splitter.feed(STREAM[i : i + size])]

    assert b"".join(events) + splitter.rest() == STREAM
    assert [read_event(raw).data for raw in events[:5]] == [None, b'{"a":1}', b"x\ny", None, b"no blank"]
    assert [read_event(raw).id for raw in events[:3]] == [None, b"1", b"2"]


def test_an_event_without_end_is_not_held_for_ever() -> None:
    splitter = EventSplitter(100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x" * 10)


def test_data_is_exchanged_and_every_other_line_stays() -> None:
    raw = b"id: 9\r\nretry: 5\r\ndata: {\r\ndata: }\r\n: why\r\n\r\n"

    assert with_data(raw, b"[]") == b"id: 9\r\nretry: 5\r\ndata: []\r\n: why\r\n\r\n"


@pytest.mark.parametrize("value", ["plain", "", "größe", " padded ", "=?base64?AAAA?=", "line\nbreak"])
def test_a_header_means_what_was_put_into_it(value: str) -> None:
    assert decoded(encoded(value)) == value
    assert encoded(value).isascii()


@pytest.mark.parametrize("value", ["=?base64?!!!!?=", "=?base64?/w==?=", "=?base64?YR==?="])
def test_a_header_that_means_nothing_agrees_with_nothing(value: str) -> None:
    assert decoded(value) == "\0"


def test_only_what_is_known_passes_up_and_every_mcp_header_does() -> None:
    given = [
        (b"authorization", b"Bearer grant"),
        (b"cookie", b"a=b"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"forwarded", b"for=1.2.3.4"),
        (b"x-api-key", b"k"),
        (b"host", b"door"),
        (b"connection", b"close"),
        (b"te", b"trailers"),
        (b"accept-encoding", b"gzip"),
        (b"proxy-authorization", b"Basic x"),
        (b"mcp-param-region", b"eu"),
        (b"mcp-something-new", b"1"),
        (b"accept", b"text/event-stream"),
        (b"last-event-id", b"7"),
    ]
    assert [name for name, _ in upward(given)] == [
        b"mcp-param-region",
        b"mcp-something-new",
        b"accept",
        b"last-event-id",
    ]


def test_nothing_passes_down_that_would_send_a_client_elsewhere() -> None:
    given = [
        (b"Content-Type", b"application/json"),
        (b"WWW-Authenticate", b"Bearer"),
        (b"Set-Cookie", b"a=b"),
        (b"Location", b"http://x"),
        (b"Mcp-Session-Id", b"s"),
        (b"Transfer-Encoding", b"chunked"),
    ]
    assert downward(given) == [(b"content-type", b"application/json"), (b"mcp-session-id", b"s")]


@pytest.mark.parametrize("name", [b"mcp-method", b"mcp-name", b"mcp-session-id", b"authorization", b"host"])
def test_a_header_that_is_there_twice_is_refused(name: bytes) -> None:
    with pytest.raises(Refusal):
        single([(name, b"a"), (name, b"a")])


def test_a_connection_header_cannot_take_routing_headers_away() -> None:
    with pytest.raises(Refusal):
        single([(b"connection", b"keep-alive, Mcp-Name")])


MODERN = {**CALL, "params": {"name": "echo", "_meta": {META_VERSION: "2026-07-28"}}}
RIGHT = {b"mcp-method": "tools/call", b"mcp-name": "echo", b"mcp-protocol-version": "2026-07-28"}


@pytest.mark.parametrize(
    "given",
    [
        {**RIGHT, b"mcp-method": "tools/list"},
        {**RIGHT, b"mcp-name": "other"},
        {**RIGHT, b"mcp-protocol-version": "2027-01-01"},
        {b"mcp-protocol-version": "2026-07-28"},
        {b"mcp-protocol-version": "2026-07-28", b"mcp-method": "tools/call"},
    ],
)
def test_headers_that_do_not_say_what_the_body_says_are_refused(given: dict[bytes, str]) -> None:
    with pytest.raises(Refusal) as refused:
        check_routing(given, read_message(json.dumps(MODERN).encode()), "modern")
    assert refused.value.code == -32020


def test_headers_that_agree_pass_in_any_spelling() -> None:
    message = read_message(json.dumps(MODERN).encode())

    check_routing(RIGHT, message, "modern")
    check_routing({**RIGHT, b"mcp-name": "=?base64?ZWNobw==?="}, message, "modern")


def test_the_older_era_needs_no_routing_headers_but_they_must_be_true() -> None:
    message = read_message(json.dumps(CALL).encode())

    check_routing({}, message, "legacy")
    with pytest.raises(Refusal):
        check_routing({b"mcp-name": "other"}, message, "legacy")
