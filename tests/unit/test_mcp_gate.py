"""Who may talk to /mcp."""

import pytest
from galley_server.mcp.gate import Gate
from galley_server.secret import Secret
from starlette.datastructures import Headers

LOCAL = Gate.for_bind("127.0.0.1", Secret("key"))
PUBLIC = Gate.for_bind("0.0.0.0", Secret("key"))
NAMED = Gate.for_bind("0.0.0.0", Secret("key"), hosts=["Galley.example"], origins=["https://app.example"])


def status(gate: Gate, method: str = "POST", **headers: str) -> int:
    sent = {"host": "127.0.0.1:8420", "authorization": "Bearer key"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    denied = gate.check(method, Headers({name: value for name, value in sent.items() if value}))
    return 200 if denied is None else denied.status


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8420", "LOCALHOST", "[::1]:8420"])
def test_a_loopback_server_answers_to_loopback_names(host: str) -> None:
    assert status(LOCAL, host=host) == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost:evil", "localhost.evil.example", "127.0.0.1@evil.example", "a b", "[::1"]
)
def test_any_other_host_is_misdirected(host: str) -> None:
    assert status(LOCAL, host=host) == 421


@pytest.mark.parametrize(
    ("gate", "host", "expected"),
    [(PUBLIC, "10.0.0.5:8420", 200), (NAMED, "galley.example", 200), (NAMED, "localhost", 200), (NAMED, "other", 421)],
)
def test_a_server_on_all_addresses_answers_to_the_names_it_was_given(gate: Gate, host: str, expected: int) -> None:
    assert status(gate, host=host) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:8420", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
        ("file://localhost", 403),
    ],
)
def test_pages_of_other_origins_are_refused(origin: str, expected: int) -> None:
    assert status(LOCAL, origin=origin) == expected


def test_an_origin_that_was_allowed_is_let_in() -> None:
    assert status(NAMED, host="galley.example", origin="https://app.example") == 200
    assert status(NAMED, host="galley.example", origin="https://galley.example") == 200
    assert status(NAMED, host="galley.example", origin="http://localhost:3000") == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "bearer key"}, 200),
        ({"authorization": "", "x_api_key": "key"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "key"}, 401),
        ({"authorization": ""}, 401),
        ({"authorization": "", "x_api_key": "kéy"}, 401),
    ],
)
def test_the_key_comes_as_a_bearer_token_or_as_x_api_key(headers: dict[str, str], expected: int) -> None:
    assert status(LOCAL, **headers) == expected


def test_a_refusal_is_a_challenge_that_names_no_authorization_server() -> None:
    denied = LOCAL.check("POST", Headers({"host": "localhost"}))
    assert denied is not None
    assert denied.headers == {"WWW-Authenticate": 'Bearer realm="galley"'}


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "HEAD", "PATCH"])
def test_other_methods_are_not_served(method: str) -> None:
    assert status(LOCAL, method) == 405
