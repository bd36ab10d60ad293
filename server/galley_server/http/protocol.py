"""HTTP/1.1 as uvicorn speaks it, with a bound on a request's head, and with our envelope where the parser gives up."""

import logging
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from galley_server.errors import InvalidRequest
from galley_server.http.envelope import envelope, error_headers
from galley_server.ids import new_id

logger = logging.getLogger(__name__)

HEAD_LIMIT: Final = 64 * 1024


class Protocol(HttpToolsProtocol):
    """The parser keeps a request line and headers of any length, and whoever sends them has shown no key yet."""

    _head = 0
    _in_head = True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._in_head = 0, True

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_LIMIT and not self.transport.is_closing():
                self.send_400_response(f"the request line and headers are larger than {HEAD_LIMIT // 1024} KB")

    def send_400_response(self, msg: str) -> None:
        request_id = new_id("req")
        logger.info("%s: not HTTP: %s", request_id, msg)
        error = InvalidRequest(msg)
        body = envelope(error, request_id)
        headers = [
            *self.server_state.default_headers,
            *error_headers(error),
            (b"request-id", request_id.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[400] + lines + b"\r\n" + body)
        self.transport.close()
