"""The stdio shim to a Galley server elsewhere (GALLEY_URL): streamable HTTP in both protocol eras.

One thread reads stdin, each request has a thread of its own, and one sends notifications in their order. Standard
library only.
"""

import base64
import http.client
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Self

from galley_server.mcp.lines import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MAX_CLIENT_LINE,
    MAX_SERVER_LINE,
    LineReader,
    RequestId,
    TooLong,
    answered_id,
    encoded,
    error_line,
    id_of,
    parsed,
    too_long_message,
)
from galley_server.mcp.relay import BUSY, LOST, MAX_IN_FLIGHT, REPEATABLE
from galley_server.mcp.sse import EventTooLong, SSEReader
from galley_server.mcp.upstream import Address, Call, NotReached, Upstream

_READ = 64 * 1024
_VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_PLAIN_HEADER = re.compile(r"(?!=\?base64\?)[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_REACH_DELAYS_S = (0.2, 0.5, 1.0, 2.0)
_LISTEN_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 15.0)
_HANDSHAKE_S = 30.0
_FAREWELL_S = 1.0
_ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}

Message = dict[str, object]


class Session:
    """What a handshake-era client has agreed on with the server, and how to agree on it again."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.version: str | None = None
        self.initialize: Message | None = None
        self.initialized = False
        self.ready = threading.Event()  # cleared while an initialize is under way
        self.ready.set()
        self.renewing = threading.Lock()

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.id is not None:
            headers["Mcp-Session-Id"] = self.id
        if self.version is not None:
            headers["MCP-Protocol-Version"] = self.version
        return headers


class RemoteShim:
    def __init__(self, upstream: Upstream, *, stdin: int = 0, stdout: int = 1) -> None:
        self._upstream = upstream
        self._stdin = stdin
        self._stdout = stdout
        self._writing = threading.Lock()
        self._session = Session()
        self._active: dict[RequestId, Call | None] = {}
        self._cancelled: set[RequestId] = set()
        self._state = threading.Lock()
        self._notices: queue.Queue[tuple[Message, bytes]] = queue.Queue(MAX_IN_FLIGHT)
        self._listening: threading.Thread | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        return cls(Upstream(Address.parse(environ["GALLEY_URL"].strip()), environ.get("GALLEY_API_KEY", "").strip()))

    def run(self) -> None:
        """Until stdin ends. The threads are daemons: none may keep a client waiting that has hung up."""
        threading.Thread(target=self._send_notices, daemon=True).start()
        lines = LineReader(MAX_CLIENT_LINE)
        with suppress(BrokenPipeError):
            while data := os.read(self._stdin, _READ):
                for line in lines.feed(data):
                    self._take(line)
        self._say_farewell()

    def _take(self, line: bytes | TooLong) -> None:
        if isinstance(line, TooLong):
            self._write(error_line(line.id, INVALID_REQUEST, too_long_message(MAX_CLIENT_LINE, "client")))
            return
        message = parsed(line)
        if message is None:
            self._write(error_line(None, INVALID_REQUEST, "The line is not a JSON object."))
            return
        id_ = id_of(message) if "method" in message else None
        if id_ is None:
            if not self._cancels(message):
                with suppress(queue.Full):  # this thread must not wait: it is the one that sees the client hang up
                    self._notices.put_nowait((message, line))
            return
        with self._state:
            refusal = BUSY if len(self._active) >= MAX_IN_FLIGHT else None
            if id_ in self._active:
                refusal = "A request with this id is still waiting for its answer."
            if refusal is None:
                self._active[id_] = None
        if refusal is not None:
            self._write(error_line(id_, INVALID_REQUEST, refusal))
            return
        if message["method"] == "initialize":
            self._session.ready.clear()
        threading.Thread(target=self._answer, args=(id_, message, line), daemon=True).start()

    def _cancels(self, message: Message) -> bool:
        """In the modern era a call is cancelled by hanging up on it; in the other one the notification is sent on."""
        params = message.get("params")
        if message.get("method") != "notifications/cancelled" or not isinstance(params, dict):
            return False
        id_ = params.get("requestId")
        if not isinstance(id_, int | str):
            return False
        with self._state:
            if self._session.initialize is not None or id_ not in self._active:
                return False
            self._cancelled.add(id_)
            call = self._active[id_]
        if call is not None:
            call.abort()
        return True

    # One request, in its own thread.

    def _answer(self, id_: RequestId, message: Message, line: bytes) -> None:
        try:
            problem = self._exchange(id_, message, line)
        finally:
            if message["method"] == "initialize":
                self._session.ready.set()
            with self._state:
                del self._active[id_]
                cancelled = id_ in self._cancelled
                self._cancelled.discard(id_)
        if problem is not None and not cancelled:
            self._write(error_line(id_, INTERNAL_ERROR, problem))

    def _exchange(self, id_: RequestId, message: Message, line: bytes) -> str | None:
        """Ask, and write the answer; what went wrong if there is none. A repeat is tried only where it is harmless."""
        delays = iter(_REACH_DELAYS_S)
        renewed = lost = False
        while True:
            if message["method"] != "initialize" and _modern_version(message) is None:
                self._session.ready.wait(_HANDSHAKE_S)
            session_id = self._session.id
            try:
                if self._attempt(id_, message, line):
                    return None
            except NotReached as error:
                delay = next(delays, None)
                if delay is None:
                    return f"The Galley server at {error}"
                time.sleep(delay)
            except _SessionGone:
                if renewed or not self._renew(session_id):
                    return f"The Galley server at {self._upstream.address} has ended this MCP session. Connect again."
                renewed = True
            except (OSError, http.client.HTTPException, EventTooLong) as error:
                if message["method"] == "subscriptions/listen":
                    return "The connection to the Galley server was lost: subscribe again, and look what has changed."
                if lost or message["method"] not in REPEATABLE:
                    return f"{LOST} ({type(error).__name__})"
                lost = True

    def _attempt(self, id_: RequestId, message: Message, line: bytes) -> bool:
        with self._upstream.call() as call:
            with self._state:
                if id_ in self._cancelled:
                    return True
                self._active[id_] = call
            response = self._upstream.send(call, "POST", {**_ACCEPT, **self._headers(message)}, line)
            if response.status == 404 and self._session.id is not None and _modern_version(message) is None:
                raise _SessionGone
            if response.status >= 400:
                self._write(_error_answer(id_, response, self._upstream.address))
                return True
            for answer in _messages(response):
                if call.aborted:
                    return True
                is_answer = answered_id(answer) == id_
                if is_answer and message["method"] == "initialize":
                    self._agreed(message, answer, response)
                self._write(answer + b"\n")
                if is_answer:
                    _drain(response)
                    return True
            if call.aborted:
                return True
            raise http.client.HTTPException("the answer ended early")

    def _headers(self, message: Message) -> dict[str, str]:
        version = _modern_version(message)
        if version is None:
            return {} if message.get("method") == "initialize" else self._session.headers()
        method = str(message.get("method"))
        headers = {"MCP-Protocol-Version": _header_value(version), "Mcp-Method": _header_value(method)}
        params = message.get("params")
        name = params.get(_NAMED[method]) if method in _NAMED and isinstance(params, dict) else None
        if isinstance(name, str):
            headers["Mcp-Name"] = _header_value(name)
        return headers

    # The handshake era.

    def _agreed(self, initialize: Message, answer: bytes, response: http.client.HTTPResponse) -> None:
        result = (parsed(answer) or {}).get("result")
        if not isinstance(result, dict):
            return
        self._session.initialize = initialize
        self._session.id = response.headers.get("Mcp-Session-Id")
        self._session.version = str(result.get("protocolVersion"))

    def _renew(self, stale: str | None) -> bool:
        """Initialise again in the client's place after the server has forgotten the session."""
        with self._session.renewing:
            if self._session.id != stale:
                return True  # another request was faster
            if self._session.initialize is None:
                return False
            body = encoded({**self._session.initialize, "id": "galley-shim/initialize"})
            with suppress(OSError, http.client.HTTPException, EventTooLong, NotReached), self._upstream.call() as call:
                response = self._upstream.send(call, "POST", _ACCEPT, body)
                for answer in _messages(response):
                    self._agreed(self._session.initialize, answer, response)
            if self._session.id == stale:
                return False
            if self._session.initialized:
                self._post_notice(encoded({"jsonrpc": "2.0", "method": "notifications/initialized"}), {})
                self._listen()
            return True

    def _send_notices(self) -> None:
        while True:
            message, line = self._notices.get()
            self._session.ready.wait(_HANDSHAKE_S)
            self._post_notice(line, self._headers(message))
            if message.get("method") == "notifications/initialized":
                self._session.initialized = True
                self._listen()

    def _post_notice(self, line: bytes, headers: Mapping[str, str]) -> None:
        with suppress(OSError, http.client.HTTPException, NotReached), self._upstream.call() as call:
            everything = {**_ACCEPT, **self._session.headers(), **headers}
            _drain(self._upstream.send(call, "POST", everything, line))

    def _listen(self) -> None:
        """The stream of what a handshake-era server says unasked. There is one, and it outlives single connections."""
        if self._listening is None or not self._listening.is_alive():
            self._listening = threading.Thread(target=self._keep_listening, daemon=True)
            self._listening.start()

    def _keep_listening(self) -> None:
        failures = 0
        while True:
            try:
                with self._upstream.call() as call:
                    headers = {"Accept": "text/event-stream", **self._session.headers()}
                    response = self._upstream.send(call, "GET", headers, None)
                    if response.status in (404, 405):
                        _drain(response)
                        return
                    for message in _messages(response):
                        failures = 0
                        self._write(message + b"\n")
            except (OSError, http.client.HTTPException, EventTooLong, NotReached):
                pass  # tried again below, for as long as there is a client
            time.sleep(_LISTEN_DELAYS_S[min(failures, len(_LISTEN_DELAYS_S) - 1)])
            failures += 1

    def _say_farewell(self) -> None:
        """Few clients end their session; the shim does it for them, if the server is quick."""
        if self._session.id is None:
            return
        farewell = threading.Thread(target=self._delete_session, daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_S)

    def _delete_session(self) -> None:
        with suppress(OSError, http.client.HTTPException, NotReached), self._upstream.call() as call:
            _drain(self._upstream.send(call, "DELETE", self._session.headers(), None))

    def _write(self, line: bytes) -> None:
        with self._writing:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._stdout, rest) :]


class _SessionGone(Exception):
    pass


def _error_answer(id_: RequestId, response: http.client.HTTPResponse, address: Address) -> bytes:
    """What an HTTP error means to somebody who sees only JSON-RPC."""
    status = response.status
    messages = [parsed(message) for message in _messages(response)]
    if status == 401:
        problem = f"The Galley server at {address} refuses GALLEY_API_KEY: set it to that server's key."
        return error_line(id_, INVALID_REQUEST, problem)
    for message in messages:
        if message is not None and isinstance(message.get("error"), dict):
            return encoded({"jsonrpc": "2.0", "id": id_, "error": message["error"]})
    problem = f"The Galley server at {address} answered HTTP {status}. Is GALLEY_URL the address of one?"
    return error_line(id_, INTERNAL_ERROR, problem)


def _modern_version(message: Message) -> str | None:
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    version = meta.get(_VERSION_KEY) if isinstance(meta, dict) else None
    return version if isinstance(version, str) and message.get("method") != "initialize" else None


def _header_value(value: str) -> str:
    if _PLAIN_HEADER.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def _messages(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Each JSON-RPC message in a response, as one line without its end."""
    kind = response.headers.get_content_type()
    if kind == "text/event-stream":
        reader = SSEReader(MAX_SERVER_LINE)
        while data := response.read1(_READ):
            for event in reader.feed(data):
                yield _one_line(event)
        response.close()
    elif kind == "application/json":
        body = response.read(MAX_SERVER_LINE + 1)
        if len(body) > MAX_SERVER_LINE:
            raise EventTooLong
        yield _one_line(body)
    else:
        _drain(response)


def _one_line(message: bytes) -> bytes:
    """Between JSON tokens a line end is blank space, and inside a string there is none."""
    return message.replace(b"\r", b" ").replace(b"\n", b" ")


def _drain(response: http.client.HTTPResponse) -> None:
    """Read what is left, at most the end of a stream, so that the connection can be used again."""
    while response.read1(_READ):
        pass
    response.close()  # read1 does not notice the end of a body of known length
