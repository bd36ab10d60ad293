"""The query string: kinds, brackets, and refusals that name the parameter."""

from datetime import UTC, datetime

import pytest
from galley_server.errors import InvalidRequest
from galley_server.http.query import Query

TAKES = frozenset({"limit", "page", "order", "include_archived", "types[]", "created_at[gte]", "event_deltas[]"})


def query(raw: bytes) -> Query:
    return Query.parse(raw, takes=TAKES)


def test_nothing_given_is_nothing() -> None:
    empty = query(b"")
    assert empty.text("page") is None
    assert empty.whole("limit") is None
    assert empty.flag("include_archived") is None
    assert empty.time("created_at[gte]") is None
    assert empty.texts("types[]") == ()
    assert empty.order() is None


def test_arrays_repeat_a_bracketed_name_encoded_or_not() -> None:
    assert query(b"types[]=user.message&types%5B%5D=agent.message").texts("types[]") == (
        "user.message",
        "agent.message",
    )


@pytest.mark.parametrize("raw", [b"beta=true", b"beta=true&limit=3", b"limit=3&beta=anything"])
def test_the_beta_flag_of_older_clients_is_ignored(raw: bytes) -> None:
    assert query(raw).whole("limit") in (None, 3)


def test_a_blank_value_is_not_given() -> None:
    assert query(b"page=&limit=&types[]=").text("page") is None


@pytest.mark.parametrize(
    "text",
    [
        b"2026-04-03T18:24:10.412Z",
        b"2026-04-03T20:24:10.412%2B02:00",
        b"2026-04-03T20:24:10.412+02:00",
        b"2026-04-03t18:24:10.412z",
    ],
)
def test_a_time_is_rfc_3339_in_any_offset(text: bytes) -> None:
    found = query(b"created_at[gte]=" + text).time("created_at[gte]")
    assert found == datetime(2026, 4, 3, 18, 24, 10, 412000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"limt=3", "'limt': unknown query parameter; this call takes created_at[gte], event_deltas[]"),
        (b"types=user.message", "'types': unknown query parameter; write types[]"),
        (b"created_at[gt]=2026-04-03T18:24:10Z", "'created_at[gt]': unknown query parameter"),
        (b"limit=3&limit=4", "limit: given more than once"),
        (b"%ff=1", "the query string is not percent-encoded UTF-8"),
        (b"page=%ed%a0%80", "the query string is not percent-encoded UTF-8"),
        (b"&".join([b"types[]=a"] * 1001), "the query string has more than 1000 parameters"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        query(raw)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize("text", [b"0", b"-1", b"101", b"1.0", b"abc", b"1e2", b"%D9%A1", b"9" * 400])
def test_a_number_out_of_range_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^limit: .* is not a whole number from 1 to 100$"):
        query(b"limit=" + text).whole("limit", high=100)


@pytest.mark.parametrize("text", [b"1", b"yes", b"True", b"TRUE"])
def test_a_flag_is_true_or_false_and_nothing_else(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^include_archived: "):
        query(b"include_archived=" + text).flag("include_archived")


@pytest.mark.parametrize(
    "text",
    [b"yesterday", b"2026-04-03", b"2026-04-03T18:24:10", b"2026-13-03T18:24:10Z", b"0001-01-01T00:00:00%2B05:00"],
)
def test_a_time_that_is_not_rfc_3339_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^created_at\[gte\]: .* is not an RFC 3339 time"):
        query(b"created_at[gte]=" + text).time("created_at[gte]")


def test_an_unknown_choice_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidRequest, match=r"^event_deltas\[\]: 'agent.tool_use' is not one of agent.message"):
        query(b"event_deltas[]=agent.tool_use").choices("event_deltas[]", {"agent.thinking", "agent.message"}, most=100)


def test_too_many_choices_are_refused() -> None:
    many = query(b"&".join([b"event_deltas[]=agent.message"] * 101))
    with pytest.raises(InvalidRequest, match=r"^event_deltas\[\]: 101 values, at most 100"):
        many.choices("event_deltas[]", {"agent.message"}, most=100)


def test_an_order_is_asc_or_desc() -> None:
    assert query(b"order=asc").order() == "asc"
    assert query(b"order=desc").order() == "desc"
    with pytest.raises(InvalidRequest, match=r"^order: 'up' is neither asc nor desc"):
        query(b"order=up").order()


def test_a_refusal_does_not_repeat_a_long_value() -> None:
    with pytest.raises(InvalidRequest) as refused:
        query(b"order=" + b"x" * 10_000).order()
    assert len(refused.value.message) < 200
