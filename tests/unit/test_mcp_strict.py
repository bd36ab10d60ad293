"""Each kind of malformed message gets one plain sentence."""

import time

import pytest
from galley_server.mcp.strict import MAX_DEPTH, Refusal, read_message
from mcp_types import INVALID_REQUEST, PARSE_ERROR, JSONRPCNotification, JSONRPCRequest


def test_a_request_is_read() -> None:
    message = read_message(b'{"jsonrpc":"2.0","id":"a","method":"m","params":{"x":[1.5,null]}}')
    assert message == JSONRPCRequest(jsonrpc="2.0", id="a", method="m", params={"x": [1.5, None]})


def test_a_notification_is_read() -> None:
    assert isinstance(read_message(b'{"jsonrpc":"2.0","method":"m"}'), JSONRPCNotification)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "at character 1"),
        (b"", "at character 0"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e999}', "out of range"),
        (b'{"a":' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a":1,"a":2}', "same key twice"),
        (b'{"b":{"a":1,"a":2}}', "same key twice"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "UTF-8"),
        ('{"a":1}'.encode("utf-16"), "UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested deeper"),
    ],
)
def test_what_is_not_json_is_a_parse_error(data: bytes, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_message(data)
    assert refused.value.code == PARSE_ERROR
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("data", "words", "id_"),
    [
        (b"[]", "array", None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', "array", None),
        (b"1", "not a JSON object", None),
        (b'{"id":1,"method":"m"}', "jsonrpc", 1),
        (b'{"jsonrpc":"2.0","id":1}', "neither a request", 1),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', "method is not a string", 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":[]}', "params are not an object", 1),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"m"}', "neither a string nor an integer", None),
        (b'{"jsonrpc":"2.0","id":true,"method":"m"}', "neither a string nor an integer", None),
        (b'{"jsonrpc":"2.0","id":null,"method":"m"}', "neither a string nor an integer", None),
    ],
)
def test_json_that_is_no_message_is_an_invalid_request(data: bytes, words: str, id_: int | None) -> None:
    with pytest.raises(Refusal) as refused:
        read_message(data)
    assert (refused.value.code, refused.value.id) == (INVALID_REQUEST, id_)
    assert words in refused.value.message


def test_brackets_in_strings_are_not_depth() -> None:
    text = '[{"' * 1000
    message = read_message(
        b'{"jsonrpc":"2.0","method":"m","params":{"x":"' + text.replace('"', '\\"').encode() + b'"}}'
    )
    assert isinstance(message, JSONRPCNotification)
    assert message.params == {"x": text}


def test_a_whole_surrogate_pair_is_text() -> None:
    message = read_message(b'{"jsonrpc":"2.0","method":"m","params":{"x":"\\ud83d\\ude00"}}')
    assert isinstance(message, JSONRPCNotification)
    assert message.params == {"x": "\U0001f600"}


def test_four_megabytes_of_brackets_are_refused_quickly() -> None:
    before = time.perf_counter()
    with pytest.raises(Refusal):
        read_message(b"[" + b"[]," * (4 * 1024 * 1024 // 3))
    # What grows with the square of the size would take hours; the bound leaves room for a busy machine.
    assert time.perf_counter() - before < 30
