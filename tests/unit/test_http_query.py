"""The query string: kinds, brackets, and refusals that name the parameter."""

from datetime import UTC, datetime

import pytest
from galley_server.errors import InvalidRequest
from galley_server.http.query import flag, read, text, time, whole

TAKES = {"limit": whole, "page": text, "include_archived": flag, "types[]": text, "created_at[gte]": time}


def query(raw: bytes) -> dict[str, object]:
    return read(raw, TAKES)


def test_what_is_not_given_is_not_there() -> None:
    assert query(b"") == {}


def test_names_become_those_of_the_sdk() -> None:
    given = query(b"limit=3&include_archived=true&types[]=a&created_at[gte]=2026-04-03T18:24:10Z")
    assert given == {
        "limit": 3,
        "include_archived": True,
        "types": ("a",),
        "created_at_gte": datetime(2026, 4, 3, 18, 24, 10, tzinfo=UTC),
    }


def test_arrays_repeat_a_bracketed_name_encoded_or_not() -> None:
    assert query(b"types[]=user.message&types%5B%5D=agent.message") == {"types": ("user.message", "agent.message")}


@pytest.mark.parametrize("raw", [b"beta=true", b"beta=true&beta=false", b"beta"])
def test_the_beta_flag_of_older_clients_is_ignored(raw: bytes) -> None:
    assert query(raw) == {}


def test_a_blank_value_is_not_given() -> None:
    assert query(b"page=&limit=&types[]=") == {}


@pytest.mark.parametrize(
    "stamp",
    [
        b"2026-04-03T18:24:10.412Z",
        b"2026-04-03T20:24:10.412%2B02:00",
        b"2026-04-03T20:24:10.412+02:00",
        b"2026-04-03t18:24:10.412z",
    ],
)
def test_a_time_is_rfc_3339_in_any_offset(stamp: bytes) -> None:
    found = query(b"created_at[gte]=" + stamp)["created_at_gte"]
    assert found == datetime(2026, 4, 3, 18, 24, 10, 412000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"limt=3", "'limt': unknown query parameter; this call takes created_at[gte], include_archived, limit"),
        (b"types=user.message", "'types': unknown query parameter; write types[]"),
        (b"created_at[gt]=2026-04-03T18:24:10Z", "'created_at[gt]': unknown query parameter"),
        (b"limit=3&limit=4", "limit: given more than once"),
        (b"%ff=1", "the query string is not percent-encoded UTF-8"),
        (b"page=%ed%a0%80", "the query string is not percent-encoded UTF-8"),
        (b"page=\xff", "the query string is not percent-encoded UTF-8"),
        (b"&".join([b"types[]=a"] * 1001), "the query string has more than 1000 parameters"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        query(raw)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize("value", [b"1.0", b"abc", b"1e2", b"0x1", b"1_0", b"%201", b"%D9%A1", b"9" * 400])
def test_what_is_not_a_number_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^limit: .* is not a whole number$"):
        query(b"limit=" + value)


@pytest.mark.parametrize("value", [b"1", b"yes", b"True", b"TRUE"])
def test_a_flag_is_true_or_false_and_nothing_else(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^include_archived: .* is neither true nor false$"):
        query(b"include_archived=" + value)


@pytest.mark.parametrize(
    "stamp",
    [
        b"yesterday",
        b"2026-04-03",
        b"2026-04-03T18:24:10",
        b"2026-13-03T18:24:10Z",
        b"0001-01-01T00:00:00%2B05:00",
    ],
)
def test_a_time_that_is_not_rfc_3339_is_refused(stamp: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^created_at\[gte\]: .* is not an RFC 3339 time"):
        query(b"created_at[gte]=" + stamp)


def test_a_refusal_does_not_repeat_a_long_value() -> None:
    with pytest.raises(InvalidRequest) as refused:
        query(b"include_archived=" + b"x" * 10_000)
    assert len(refused.value.message) < 200
