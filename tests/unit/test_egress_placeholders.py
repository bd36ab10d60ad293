"""Placeholders: swapped in the right place, for the right host, in the right spelling, in pieces of any size."""

import base64
import json
from collections.abc import Collection

import pytest
from galley_vault_proxy.credentials.port import EnvCredential, Location
from galley_vault_proxy.egress.placeholders import PlaceholderRefused, Placeholders
from galley_vault_proxy.errors import Unavailable
from galley_vault_proxy.secret import Secret

BOTH: Collection[Location] = ("header", "body")


def credential(
    placeholder: str = "sk-placeholder-1",
    secret: str = "the-secret",
    hosts: tuple[str, ...] | None = ("api.test",),
    locations: Collection[Location] = BOTH,
) -> EnvCredential:
    return EnvCredential(f"vcrd_{placeholder[-1]}", 1, "KEY", placeholder, Secret(secret), hosts, frozenset(locations))


HERE = credential()
ELSEWHERE = credential("sk-placeholder-2", hosts=("*.other.test",))


def one_header(value: bytes, *found: EnvCredential, name: bytes = b"X-Key") -> bytes:
    return Placeholders(found or (HERE, ELSEWHERE), "api.test").headers([(name, value)])[0][1]


def test_every_occurrence_in_a_value_is_swapped() -> None:
    assert one_header(b"a sk-placeholder-1;b=sk-placeholder-1") == b"a the-secret;b=the-secret"


def test_names_of_headers_are_left_alone() -> None:
    found = Placeholders([HERE], "api.test").headers([(b"sk-placeholder-1", b"x")])
    assert found == [(b"sk-placeholder-1", b"x")]


def test_a_credential_for_every_host_is_swapped_everywhere() -> None:
    assert one_header(b"sk-placeholder-1", credential(hosts=None)) == b"the-secret"


def test_a_pattern_is_for_the_hosts_below_it() -> None:
    placeholders = Placeholders([ELSEWHERE], "x.other.test")
    assert placeholders.headers([(b"X", b"sk-placeholder-2")]) == [(b"X", b"the-secret")]
    with pytest.raises(PlaceholderRefused):
        Placeholders([ELSEWHERE], "other.test").headers([(b"X", b"sk-placeholder-2")])


def test_what_was_used_is_known() -> None:
    placeholders = Placeholders([HERE, ELSEWHERE], "api.test")
    placeholders.headers([(b"X", b"nothing")])
    assert not placeholders.used
    placeholders.headers([(b"X", b"sk-placeholder-1")])
    assert list(placeholders.used) == ["vcrd_1"]


def test_basic_credentials_are_looked_into() -> None:
    coded = base64.b64encode(b"user:sk-placeholder-1")
    assert one_header(b"Basic " + coded, name=b"Authorization") == b"Basic " + base64.b64encode(b"user:the-secret")
    elsewhere = base64.b64encode(b"sk-placeholder-2:")
    with pytest.raises(PlaceholderRefused):
        one_header(b"basic " + elsewhere, name=b"authorization")


@pytest.mark.parametrize("value", [b"Basic !!!", b"Basic YWJj", b"Basic", b"Basic YWJ"])
def test_other_basic_credentials_are_left_alone(value: bytes) -> None:
    assert one_header(value, name=b"Authorization") == value


def test_a_secret_that_no_header_can_carry_is_not_sent() -> None:
    with pytest.raises(Unavailable, match="line breaks"):
        one_header(b"sk-placeholder-1", credential(secret="two\r\nX-Evil: lines"))


def test_a_refusal_names_the_credential_and_not_the_secret() -> None:
    with pytest.raises(PlaceholderRefused) as refused:
        one_header(b"sk-placeholder-2")
    assert refused.value.credential is ELSEWHERE
    assert "the-secret" not in str(refused.value)


def swapped(data: bytes, size: int, kind: bytes | None = None, *found: EnvCredential) -> bytes:
    swap = Placeholders(found or (HERE,), "api.test").body(kind)
    parts = [swap.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join([*parts, swap.flush()])


@pytest.mark.parametrize("size", [1, 3, 16, 64, 1000])
def test_a_body_is_swapped_in_pieces_of_any_size(size: int) -> None:
    data = b"sk-place sk-placeholder-1sk-placeholder-1 sk-placeholder- end sk-placeholder-"
    assert swapped(data, size) == b"sk-place the-secretthe-secret sk-placeholder- end sk-placeholder-"


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_body_on_its_way_to_the_wrong_host_is_stopped(size: int) -> None:
    with pytest.raises(PlaceholderRefused):
        swapped(b"before sk-placeholder-2 after", size, None, HERE, ELSEWHERE)


@pytest.mark.parametrize("kind", [b"application/json", b"application/problem+json; charset=utf-8", b"Application/JSON"])
def test_a_secret_in_json_is_escaped(kind: bytes) -> None:
    secret = 'a"b\\c\nd'
    body = swapped(b'{"k": "sk-placeholder-1"}', 7, kind, credential(secret=secret))
    assert json.loads(body) == {"k": secret}


def test_a_secret_in_a_form_is_percent_encoded() -> None:
    kind = b"application/x-www-form-urlencoded"
    assert swapped(b"k=sk-placeholder-1&x=1", 7, kind, credential(secret="a&b=c d+/")) == b"k=a%26b%3Dc+d%2B%2F&x=1"


def test_where_only_headers_are_allowed_a_body_stays() -> None:
    placeholders = Placeholders([credential(locations={"header"})], "api.test")
    swap = placeholders.body(None)
    assert swap.feed(b"sk-placeholder-1") + swap.flush() == b"sk-placeholder-1"
    assert not placeholders.swaps_bodies


def test_in_the_clear_a_placeholder_is_stopped() -> None:
    with pytest.raises(PlaceholderRefused) as refused:
        Placeholders([HERE], "api.test", in_the_clear=True).headers([(b"X", b"sk-placeholder-1")])
    assert refused.value.reason == "cleartext_secret"


def test_without_credentials_nothing_changes() -> None:
    placeholders = Placeholders([], "api.test")
    headers = [(b"A", b"b")]
    assert placeholders.headers(headers) == headers
    assert placeholders.body(None).feed(b"x") == b"x"
    placeholders.check_target("/x")
    assert not placeholders.patterns
