"""multipart/form-data as it arrives, for uploads that never are in memory as a whole. No I/O here."""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from galley_server.errors import InvalidRequest

_MAX_PARTS: Final = 16
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class PartBegins:
    """A part's headers. `filename` is None for a plain field."""

    name: str
    filename: str | None
    media_type: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnds:
    pass


Piece: TypeAlias = PartBegins | PartData | PartEnds


class FormReader:
    """Cuts a body into pieces. Holds no more than one part's headers."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise InvalidRequest("content-type: multipart/form-data without a boundary")
        self._pieces: list[Piece] = []
        self._headers: dict[str, str] = {}
        self._name, self._value = bytearray(), bytearray()
        self._parts = 0
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": lambda data, start, end: self._pieces.append(PartData(data[start:end])),
                    "on_part_end": lambda: self._pieces.append(PartEnds()),
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise InvalidRequest(f"content-type: {error}") from None

    def feed(self, data: bytes) -> list[Piece]:
        """Return what these bytes complete."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidRequest("the body is not valid multipart/form-data") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        """Raise InvalidRequest unless the closing boundary has been seen."""
        if not self._complete:
            raise InvalidRequest("the multipart body ends before its closing boundary")

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidRequest(f"the multipart body has more than {_MAX_PARTS} parts")
        self._headers = {}

    def _header_ends(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in options:
            raise InvalidRequest("a part of the multipart body has no name in its Content-Disposition")
        filename = options.get(b"filename")
        kind = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        self._pieces.append(
            PartBegins(_text(options[b"name"]), None if filename is None else _text(filename), kind or None)
        )

    def _end(self) -> None:
        self._complete = True


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return _CONTROL.sub("", text)
