"""Lines, ids in over-long lines, and answers recognised without parsing."""

import pytest
from galley_server.mcp.lines import LineReader, TooLong, answered_id, find_id, parsed


@pytest.mark.parametrize("size", [1, 3, 64, 4096])
def test_lines_come_out_the_same_however_the_bytes_are_cut(size: int) -> None:
    data = b'{"a":1}\n\n{"b":2}\r\n{"long":"' + b"x" * 200 + b'"}\n{"partial"'
    reader = LineReader(1000)
    lines = [line for at in range(0, len(data), size) for line in reader.feed(data[at : at + size])]
    assert lines == [b'{"a":1}', b'{"b":2}\r', b'{"long":"' + b"x" * 200 + b'"}']


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":"' + b"x" * 20_000 + b'"}}', 7),
        (b'{"method":"m","params":{"id":3,"a":"' + b"x" * 20_000 + b'"},"jsonrpc":"2.0","id":"last"}', "last"),
        (b'{ "id" : "a\\"b" , "params":"' + b"x" * 20_000 + b'"}', 'a"b'),
        (b'{"params":{"a":"' + b"x" * 20_000 + b'","id":5}}', None),
        (b'{"params":"' + b"x" * 20_000 + b' \\"id\\":5}"}', None),
    ],
)
def test_an_over_long_line_is_dropped_and_its_id_found_only_where_it_is_certain(
    line: bytes, expected: int | str | None, size: int
) -> None:
    reader = LineReader(10_000)
    data = line + b'\n{"next":1}\n'
    lines = [found for at in range(0, len(data), size) for found in reader.feed(data[at : at + size])]
    assert lines == [TooLong(expected), b'{"next":1}']


def test_an_endless_line_is_not_kept() -> None:
    reader = LineReader(1000)
    for _ in range(1000):
        assert reader.feed(b"x" * 1000) == []
    assert len(reader._partial) <= 4096


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"jsonrpc":"2.0","id":5,"result":{"id":6}}', 5),
        (b'{"jsonrpc":"2.0","id":"five","error":{"code":1,"message":""}}', "five"),
        (b'{"result":{},"id":5,"jsonrpc":"2.0"}', 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"elicitation/create"}', None),
        (b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"id":5}}', None),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}', None),
        (b"nonsense", None),
    ],
)
def test_the_id_that_a_line_answers(line: bytes, expected: int | str | None) -> None:
    assert answered_id(line) == expected


@pytest.mark.parametrize("line", [b"[1]", b"1", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_not_parsed(line: bytes) -> None:
    assert parsed(line) is None


def test_an_id_inside_a_string_is_no_id() -> None:
    assert find_id(b'{"a":"', b'\\"id\\":5}"}') is None
