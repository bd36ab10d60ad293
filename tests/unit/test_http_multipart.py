"""multipart/form-data in pieces: the same parts come out however the bytes are cut."""

import pytest
from galley_server.errors import InvalidRequest
from galley_server.http.multipart import FormReader, PartBegins, PartData, PartEnds, Piece

TYPE = 'multipart/form-data; boundary="x1"'
BODY = (
    b'--x1\r\nContent-Disposition: form-data; name="expires_in_seconds"\r\n\r\n3600\r\n'
    b'--x1\r\nContent-Disposition: form-data; name="file"; filename="caf\xc3\xa9.csv"\r\n'
    b"Content-Type: text/CSV; charset=utf-8\r\n\r\na,b\r\n--x\r\n1,2\r\n--x1--\r\n"
)


def parts(body: bytes, *, size: int) -> list[tuple[PartBegins, bytes]]:
    reader = FormReader(TYPE)
    found: list[tuple[PartBegins, bytes]] = []
    ended = 0
    for start in range(0, len(body), size):
        for piece in reader.feed(body[start : start + size]):
            match piece:
                case PartBegins():
                    found.append((piece, b""))
                case PartData(data):
                    found[-1] = (found[-1][0], found[-1][1] + data)
                case PartEnds():
                    ended += 1
    reader.close()
    assert ended == len(found)
    return found


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
def test_parts_survive_any_cut(size: int) -> None:
    assert parts(BODY, size=size) == [
        (PartBegins("expires_in_seconds", None, None), b"3600"),
        (PartBegins("file", "café.csv", "text/csv"), b"a,b\r\n--x\r\n1,2"),
    ]


def test_a_filename_keeps_no_control_character() -> None:
    body = b'--x1\r\nContent-Disposition: form-data; name="file"; filename="a\x7f\x01b"\r\n\r\n\r\n--x1--\r\n'
    assert parts(body, size=64)[0][0].filename == "ab"


@pytest.mark.parametrize("cut", [0, 10, 60, 100, len(BODY) - 8])
def test_a_body_that_is_cut_short_is_refused(cut: int) -> None:
    reader = FormReader(TYPE)
    reader.feed(BODY[:cut])
    with pytest.raises(InvalidRequest, match="ends before its closing boundary"):
        reader.close()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=", b""),
        ("multipart/form-data; boundary=" + "x" * 1000, b""),
        (TYPE, b"not multipart at all"),
        (TYPE, b"--x2\r\n\r\n--x2--\r\n"),
        (TYPE, b"--x1\r\nbad header\r\n\r\nx\r\n--x1--\r\n"),
        (TYPE, b"--x1\r\nContent-Type: text/plain\r\n\r\nx\r\n--x1--\r\n"),
        (TYPE, b"--x1\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--x1--\r\n"),
        (TYPE, b'--x1\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 17 + b"--x1--\r\n"),
    ],
)
def test_what_is_not_multipart_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        FormReader(content_type).feed(body)


def test_the_data_of_a_large_part_is_passed_on_at_once() -> None:
    reader = FormReader(TYPE)
    begin: list[Piece] = reader.feed(b'--x1\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n')
    assert begin == [PartBegins("file", "f", None)]
    assert sum(len(piece.data) for piece in reader.feed(b"z" * 100_000) if isinstance(piece, PartData)) >= 99_990
