"""The page about HTTP stays true: every error has its line."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from galley_server.errors import RequestError
from galley_server.http import envelope

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
ROWS = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE, flags=re.MULTILINE))


def kinds(root: type[RequestError]) -> Iterator[type[RequestError]]:
    for kind in root.__subclasses__():
        if kind.__module__.startswith("galley_server."):
            yield kind
            yield from kinds(kind)


@pytest.mark.parametrize("kind", list(kinds(RequestError)))
def test_every_error_has_a_line(kind: type[RequestError]) -> None:
    assert (str(kind.status), kind.type) in ROWS


def test_no_line_is_about_an_error_there_is_not() -> None:
    assert {(str(kind.status), kind.type) for kind in kinds(RequestError)} == ROWS
    assert envelope.InternalError in kinds(RequestError)
