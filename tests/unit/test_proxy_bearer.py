"""Where a door finds the grant of a request."""

import base64

import pytest
from galley_vault_proxy.errors import GrantRefused
from galley_vault_proxy.http.bearer import grant_in, tunnel_of
from galley_vault_proxy.http.connection import TUNNEL

TOKEN = "galley1.cm9vdA.c2ln"


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    "value",
    [
        f"Bearer {TOKEN}".encode(),
        f"bearer   {TOKEN} ".encode(),
        basic(f"user:{TOKEN}"),
        basic(f":{TOKEN}"),
    ],
)
def test_a_grant_is_a_bearer_token_or_a_basic_password(value: bytes) -> None:
    assert grant_in([(b"host", b"x"), (b"authorization", value)]) == TOKEN


def test_the_egress_door_reads_its_own_header() -> None:
    headers = [(b"Proxy-Authorization", f"Bearer {TOKEN}".encode()), (b"Authorization", b"Bearer upstream")]
    assert grant_in(headers, header=b"proxy-authorization") == TOKEN


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "missing"),
        ([(b"x-api-key", TOKEN.encode())], "missing"),
        ([(b"authorization", b"Digest x")], "malformed"),
        ([(b"authorization", b"Basic !!!")], "malformed"),
        ([(b"authorization", b"Basic " + base64.b64encode(b"\xff:x"))], "malformed"),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], "malformed"),
        ([(b"authorization", b"Bearer a"), (b"Authorization", b"Bearer a")], "malformed"),
        ([(b"authorization", b"Bearer " + b"x" * 100_000)], "malformed"),
    ],
)
def test_anything_else_is_none(headers: list[tuple[bytes, bytes]], reason: str) -> None:
    with pytest.raises(GrantRefused) as caught:
        grant_in(headers)
    assert caught.value.reason == reason


def test_a_connection_without_greeting_has_no_tunnel() -> None:
    assert tunnel_of({"type": "http", "state": {TUNNEL: "tun_1"}}) == "tun_1"
    assert tunnel_of({"type": "http", "state": {}}) is None
    assert tunnel_of({"type": "http"}) is None
