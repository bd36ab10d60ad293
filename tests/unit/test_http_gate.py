"""The API key: where it may stand, and what is refused."""

import pytest
from galley_server.errors import Unauthenticated
from galley_server.http.gate import admit
from galley_server.secret import Secret

KEY = Secret("right-key-0123456789")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-api-key", b"right-key-0123456789")],
        [(b"authorization", b"Bearer right-key-0123456789")],
        [(b"authorization", b"bearer  right-key-0123456789")],
        [(b"x-api-key", b"another"), (b"authorization", b"Bearer right-key-0123456789")],
    ],
)
def test_the_key_is_taken_from_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    admit(headers, KEY)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "missing API key"),
        ([(b"authorization", b"Basic cmlnaHQta2V5LTAxMjM0NTY3ODk=")], "missing API key"),
        ([(b"x-api-key", b"")], "invalid API key"),
        ([(b"x-api-key", b"right-key-012345678")], "invalid API key"),
        ([(b"x-api-key", b"right-key-0123456789 ")], "invalid API key"),
        ([(b"x-api-key", b"\xff\xfe")], "invalid API key"),
        ([(b"authorization", b"Bearer ")], "invalid API key"),
    ],
)
def test_anything_else_is_refused_without_repeating_it(headers: list[tuple[bytes, bytes]], message: str) -> None:
    with pytest.raises(Unauthenticated, match=f"^{message}") as refused:
        admit(headers, KEY)
    assert "right-key" not in refused.value.message
