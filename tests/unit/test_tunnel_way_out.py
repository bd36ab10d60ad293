"""What a sandbox is told of its way out, and what a hand may say of its tunnels."""

import pytest
from galley_sandbox.errors import HandMisbehaved
from galley_sandbox.hand.surroundings import Surroundings, update
from galley_sandbox.results import parse_door, parse_ports
from galley_sandbox.way_out import AUTHORITY, BUNDLE, EGRESS, MCP, TOKEN_FILE, WayOut, environment_of

WAY = WayOut({EGRESS: 8431, MCP: 8430}, "galley1.abc", b"pem", {"API_KEY": "sk-x", "HTTP_PROXY": "sk-y"})


def test_every_client_finds_the_proxy_by_the_variable_that_it_reads() -> None:
    environment = environment_of(WAY)
    proxy = "http://galley:galley1.abc@127.0.0.1:8431"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        assert environment[name] == proxy
    assert environment["NO_PROXY"] == environment["no_proxy"] == "localhost,127.0.0.1,::1"
    assert environment["NODE_USE_ENV_PROXY"] == "1"


def test_every_client_finds_the_authority_by_the_variable_that_it_reads() -> None:
    environment = environment_of(WAY)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "CURL_CA_BUNDLE"):
        assert environment[name] == BUNDLE
    assert environment["NODE_EXTRA_CA_CERTS"] == AUTHORITY


def test_the_mcp_door_and_the_token_are_named() -> None:
    environment = environment_of(WAY)
    assert environment["GALLEY_MCP_URL"] == "http://127.0.0.1:8430/mcp"
    assert environment["GALLEY_TOKEN_FILE"] == TOKEN_FILE


def test_a_placeholder_is_a_variable_but_never_one_that_shows_the_way() -> None:
    environment = environment_of(WAY)
    assert environment["API_KEY"] == "sk-x"
    assert environment["HTTP_PROXY"] != "sk-y"


def test_the_token_does_not_print() -> None:
    assert "galley1" not in repr(WAY)


def test_a_shell_is_told_only_what_is_new() -> None:
    told = update({"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "it's"})
    assert told == "builtin unset -v C\nbuiltin export B='it'\"'\"'s'\n"
    assert update({"A": "1"}, {"A": "1"}) == ""


def test_variables_add_up_until_they_are_taken_away() -> None:
    surroundings = Surroundings()
    surroundings.change({"A": "1", "B": "2"})
    surroundings.change({"B": None, "C": ""})
    assert surroundings.variables == {"A": "1", "C": ""}


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"egress": 0}', b'{"egress": "8431"}', b'{"egress": 1, "mcp": 2}'])
def test_ports_that_were_not_asked_for_are_not_believed(raw: bytes) -> None:
    with pytest.raises(HandMisbehaved):
        parse_ports(raw, ["egress"])


@pytest.mark.parametrize("meta", [b"", b"nonsense", b"[]", b'{"op": "tunnel"}', b'{"op": "call", "door": "egress"}'])
def test_a_channel_that_is_no_tunnel_has_no_door(meta: bytes) -> None:
    assert parse_door(meta) is None
