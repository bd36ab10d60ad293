"""Large content leaves a body and comes back byte for byte, whatever stands around it."""

import json
import random

import pytest
from galley_server.log.blobs import LIMIT, cut, hashes, join

JSONS = [
    b'""',
    b'{"a":"%s"}' % (b"x" * 200),
    b'{"a":"%s","b":"short","c":"%s"}' % (b"x" * 200, b"y" * 300),
    b'{"a":"%s","b":"%s"}' % (b"x" * 200, b"x" * 200),
    b'["%s"]' % (b'\\"' * 200),
    b'["%s","\\\\"]' % (b"\\\\" * 200),
    b"[%s]" % b",".join([b'"short"'] * 500),
    b"[%s]" % b",".join([b"1234567"] * 500),
    json.dumps({"é" * 300: "ü" * 300}, ensure_ascii=False).encode(),
    b'{"$blob":"not a reference"}' + b" " * 200,
    b'"unbalanced ' + b"x" * 300,
]


def back(body: bytes, limit: int) -> bytes:
    whole = cut(body, limit=limit)
    if whole.cuts is None:
        return whole.body
    return join(whole.body, whole.cuts, {blob.hash: blob.content for blob in whole.blobs})


@pytest.mark.parametrize("body", JSONS)
@pytest.mark.parametrize("limit", [0, 10, 100, 250, 100_000])
def test_a_body_comes_back(body: bytes, limit: int) -> None:
    assert back(body, limit) == body


def test_any_bytes_come_back() -> None:
    dice = random.Random(7)
    for _ in range(2_000):
        body = bytes(dice.choice(b'"\\ab,') for _ in range(dice.randrange(40)))
        assert back(body, dice.randrange(12)) == body


def test_a_small_body_is_left_whole() -> None:
    body = b'"%s"' % (b"x" * (LIMIT - 2))
    assert cut(body).cuts is None
    assert cut(body).body is body


@pytest.mark.parametrize("body", JSONS[1:])
def test_nothing_over_the_limit_stays_behind(body: bytes) -> None:
    assert len(cut(body, limit=100).body) <= 100


def test_the_same_string_in_two_bodies_is_the_same_blob() -> None:
    image = b"A" * 500
    one, two = cut(b'{"id":"1","image":"%s"}' % image, limit=100), cut(b'["%s"]' % image, limit=100)
    assert one.blobs == two.blobs
    assert one.blobs[0].content == image


def test_the_references_name_every_blob() -> None:
    whole = cut(JSONS[2], limit=100)
    assert whole.cuts is not None
    assert hashes(whole.cuts) == [blob.hash for blob in whole.blobs]


def test_a_hostile_body_is_cut_in_linear_time() -> None:
    body = b'"' + b'\\"' * 2_000_000  # never closed: a pattern that backtracks would not come back
    assert back(body, LIMIT) == body
