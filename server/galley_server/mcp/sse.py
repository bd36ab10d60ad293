"""Server-sent events as bytes. No I/O; standard library only."""

from galley_server.mcp.lines import LineReader, TooLong


class EventTooLong(Exception):
    pass


class SSEReader:
    """Gives the data of each event. Ids, names and retry hints mean nothing on the streams that Galley serves."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines = LineReader(limit, keep_blank=True)
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        for line in self._lines.feed(data):
            if isinstance(line, TooLong):
                raise EventTooLong
            self._take(line.rstrip(b"\r"), events)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
            if self._size > self._limit:
                raise EventTooLong
