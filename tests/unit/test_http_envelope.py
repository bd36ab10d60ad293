"""The error envelope, and what an answer says about trying again."""

import json

import pytest
from galley_server.errors import Conflict, InvalidRequest, NotFound, RateLimited, RequestError, Unavailable
from galley_server.http.envelope import InternalError, MethodNotAllowed, SlowRequest, envelope, error_headers


def test_the_envelope_is_the_official_one() -> None:
    assert json.loads(envelope(NotFound("no such agent: agent_1"), "req_1")) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "no such agent: agent_1"},
        "request_id": "req_1",
    }


def test_an_error_code_is_in_the_details() -> None:
    error = InvalidRequest("archived", error_code="environment_archived")
    assert json.loads(envelope(error, "req_1"))["error"]["details"] == {"error_code": "environment_archived"}


def test_a_message_that_is_not_text_still_makes_an_envelope() -> None:
    assert json.loads(envelope(InvalidRequest("\ud800"), "req_1"))["error"]["message"] == "?"


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (InvalidRequest("x"), b"false"),
        (Conflict("x"), b"false"),
        (InternalError(), b"false"),
        (MethodNotAllowed("x", allow="GET"), b"false"),
        (RateLimited("x", retry_after=7), b"true"),
        (Unavailable("x"), b"true"),
        (SlowRequest("x"), b"true"),
    ],
)
def test_every_error_says_whether_to_try_again(error: RequestError, retry: bytes) -> None:
    assert dict(error_headers(error))[b"x-should-retry"] == retry


def test_a_rate_limit_says_when() -> None:
    assert dict(error_headers(RateLimited("x", retry_after=7)))[b"retry-after"] == b"7"


def test_a_refused_method_is_told_which_would_do() -> None:
    assert dict(error_headers(MethodNotAllowed("x", allow="GET, POST")))[b"allow"] == b"GET, POST"
