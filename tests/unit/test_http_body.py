"""Request bodies: what is not strict JSON, or not the model, is refused with its place and value."""

import pytest
from galley_server.errors import InvalidRequest
from galley_server.http.body import MAX_DEPTH, decode, read
from galley_server.wire.base import Wire


class Note(Wire):
    text: str
    limit: int | None = None


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not valid JSON: Expecting value at line 1 column 1"),
        (b"{", "the body is not valid JSON: Expecting property name"),
        (b'{"a":1,}', "the body is not valid JSON: "),
        (b"{'a':1}", "the body is not valid JSON: "),
        (b'{"a":1} x', "the body is not valid JSON: Extra data at line 1 column 9"),
        (b'{"a":"\x01"}', "the body is not valid JSON: Invalid control character"),
        (b'{"a":"\xff"}', "the body is not UTF-8 (byte 6)"),
        (b'\xef\xbb\xbf{"a":1}', "the body is not valid JSON: "),
        (b'{"a":NaN}', "the body is not valid JSON: NaN is not a JSON number"),
        (b'{"a":-Infinity}', "the body is not valid JSON: -Infinity is not a JSON number"),
        (b'{"a":' + b"9" * 5000 + b"}", "the body is not valid JSON: Exceeds the limit"),
        (b'{"a":1,"b":2,"a":3}', "the body is not valid JSON: the key 'a' appears twice in one object"),
        (b'{"b":{"a":1,"a":1}}', "the body is not valid JSON: the key 'a' appears twice in one object"),
        (b'{"a":"\\ud800"}', "the body has half of a surrogate pair"),
        (b'{"\\udc00":1}', "the body has half of a surrogate pair"),
        (nested(MAX_DEPTH + 1), "the body is nested more than 64 levels deep"),
        (nested(200_000), "the body is nested more than 64 levels deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "the body is nested more than 64 levels deep"),
    ],
)
def test_what_parsers_read_differently_is_not_read_at_all(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(raw)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize("raw", [nested(MAX_DEPTH), b"[" + b"[]," * 500 + b"[]]", b'{"a":"\\ud83d\\ude00"}', b"1e2"])
def test_what_is_json_passes(raw: bytes) -> None:
    decode(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[]", "the body is an array, not a JSON object"),
        (b"null", "the body is null, not a JSON object"),
        (b"true", "the body is a boolean, not a JSON object"),
        (b"7", "the body is a number, not a JSON object"),
        (b'"x"', "the body is a string, not a JSON object"),
        (b"{}", "text: Field required"),
        (b'{"text":"x","txt":"x"}', "txt: "),
        (b'{"text":7}', "text: Input should be a valid string (got 7)"),
        (b'{"text":"x","limit":"3"}', "limit: Input should be a valid integer (got '3')"),
        (b'{"text":"x","limit":true}', "limit: Input should be a valid integer"),
    ],
)
def test_what_is_not_the_model_is_refused_with_place_and_value(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(Note, raw)
    assert refused.value.message.startswith(message)


def test_a_right_body_becomes_the_model() -> None:
    assert read(Note, b'{"text":"hi","limit":3}') == Note(text="hi", limit=3)
