"""Cursors and heads as people and programs write them."""

import pytest
from galley_server.errors import InvalidRequest
from galley_server.log.row import HeadMark, cursor, parse_cursor


def test_a_cursor_names_its_row() -> None:
    assert parse_cursor(cursor(12)) == 12


@pytest.mark.parametrize("text", ["", "row_", "row_x", "row_-1", "row_01", "sevt_1", "row_1 ", "row_99999999999"])
def test_other_text_is_no_row_cursor(text: str) -> None:
    assert parse_cursor(text) is None


def test_a_head_reads_as_it_is_written() -> None:
    mark = HeadMark(12, bytes(range(32)))
    assert HeadMark.parse(str(mark)) == mark


@pytest.mark.parametrize("text", ["", "12", "12:", "12:abcd", ":" + "0" * 64, "x:" + "0" * 64, "1:" + "G" * 64])
def test_a_head_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest, match="SEQ:HASH"):
        HeadMark.parse(text)
