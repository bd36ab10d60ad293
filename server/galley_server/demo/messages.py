"""A Messages-API server in front of a scripted brain, as strict as the official one.

    async with serve_scripted(Script(say("Hello."))) as url: ...

or in a process of its own, which prints `ready http://HOST:PORT` when it accepts requests:

    python -m galley_server.demo.messages [--host 127.0.0.1] [--port 0] [--delay-ms N] [--token-delay-ms N]
        [--chunk-chars N] [--script FILE.json | --analyst]

Without a script it echoes the newest user text. The format of a script is in `galley_server.demo.rules`.
"""

import argparse
import asyncio
import inspect
import json
import math
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import uvicorn
import uvicorn.lifespan.off  # loaded now: an import inside the event loop reads files there
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from galley_server.demo import dialogue, frames
from galley_server.demo.analyst import Analyst
from galley_server.demo.prompt_cache import PromptCache, count_tokens
from galley_server.demo.reply import (
    ERROR_TYPES,
    Answer,
    ApiError,
    Brain,
    Drop,
    Ending,
    Hold,
    Pace,
    Reply,
    Stall,
    StreamError,
    Witness,
    say,
)
from galley_server.demo.rules import load_rules
from galley_server.demo.script import ScriptExhausted
from galley_server.demo.shape import read_request
from galley_server.demo.transcript import JSON, Request
from galley_server.errors import ConfigError, InvalidRequest, NotFound, RequestError, TooLarge, Unauthenticated
from galley_server.ids import new_id

MAX_BODY: Final = 32 * 1024 * 1024
_MODELS: Final = {"scripted-1": "Scripted model 1", "scripted-1-mini": "Scripted model 1 mini"}
_KNOWN_MODEL: Final = ("scripted-", "claude-")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class _Head:
    """What matters of a request's head."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[bytes, bytes]

    @classmethod
    def of(cls, scope: Scope) -> "_Head":
        return cls(
            scope["method"], scope["path"], parse_qs(scope["query_string"].decode("latin-1")), dict(scope["headers"])
        )


class MessagesServer:
    """The ASGI application. `api_key` None admits any key, but not none at all."""

    def __init__(
        self,
        brain: Brain,
        state: ServerState,
        *,
        api_key: str | None = None,
        prefill: bool = False,
        minimum_cache_tokens: int = 0,
    ) -> None:
        self._brain = brain
        self._state = state
        self._witness = _witness(brain)
        self._api_key = api_key
        self._prefill = prefill
        self._cache = PromptCache(minimum_tokens=minimum_cache_tokens)
        self.failure: Exception | None = None
        """The first exception a brain raised: a mistake in the test, not an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = _Exchange(receive, send, new_id("req"), lambda: self._hang_up(scope["client"]))
        head = _Head.of(scope)
        try:
            self._authenticate(head)
            await self._route(head, exchange)
        except RequestError as error:
            await exchange.refuse(ApiError(error.status, error.type, error.message))
        except ClientGone:
            return
        except Exception as error:
            # The boundary: `serve_scripted` raises this again where the server was started. 400, for a client does
            # not repeat that.
            self.failure = self.failure or error
            status = 400 if isinstance(error, ScriptExhausted) else 500
            await exchange.refuse(ApiError(status, message=f"the scripted brain failed: {error!r}"))

    def _hang_up(self, client: tuple[str, int]) -> None:
        for connection in self._state.connections:
            if isinstance(connection, HttpToolsProtocol) and connection.client == client:
                connection.transport.close()

    def _authenticate(self, head: _Head) -> None:
        bearer = head.headers.get(b"authorization", b"").decode("latin-1")
        key = head.headers.get(b"x-api-key", b"").decode("latin-1") or bearer.removeprefix("Bearer ").strip()
        if not key:
            raise Unauthenticated("x-api-key header is required")
        if self._api_key is not None and key != self._api_key:
            raise Unauthenticated("invalid x-api-key")

    async def _route(self, head: _Head, exchange: "_Exchange") -> None:
        match head.method, head.path.strip("/").split("/"):
            case "POST", ["v1", "messages"]:
                await self._messages(head, exchange)
            case "POST", ["v1", "messages", "count_tokens"]:
                request = self._request(await exchange.body(head), head, counting=True)
                await exchange.answer(200, _json({"input_tokens": count_tokens(request.body)}))
            case "GET", ["v1", "models"]:
                await exchange.answer(200, _json(_model_page(head.query)))
            case "GET", ["v1", "models", name]:
                _known(name)
                await exchange.answer(200, _json(_model(name)))
            case _:
                raise NotFound("Not found")

    def _request(self, body: bytes, head: _Head, *, counting: bool = False) -> Request:
        if b"anthropic-version" not in head.headers:
            raise InvalidRequest("anthropic-version: header is required")
        request = read_request(_parse(body), betas=b"anthropic-beta" in head.headers, counting=counting)
        _known(request.model)
        dialogue.check(request, prefill=self._prefill)
        return request

    async def _messages(self, head: _Head, exchange: "_Exchange") -> None:
        request = self._request(await exchange.body(head), head)
        ending: Ending = "client_gone"
        try:
            answer = self._brain(request)
            if inspect.isawaitable(answer):
                answer = await exchange.unless_gone(answer)
            ending = await self._give(answer, request, exchange)
        finally:
            if self._witness is not None:
                self._witness.ended(request, ending)

    async def _give(self, answer: Answer, request: Request, exchange: "_Exchange") -> Ending:
        if isinstance(answer, ApiError):
            await exchange.refuse(answer)
            return "refused"
        usage = self._cache.charge(request.body, output_tokens=frames.output_tokens(answer))
        composed = frames.compose(answer, model=request.model, usage=usage)
        if answer.pace.first_token_s:
            await exchange.pause(answer.pace.first_token_s)
        if request.stream:
            return await _stream(answer, composed, exchange)
        return await _whole(answer, composed, exchange)


class _Exchange:
    """One request and its response. Every wait ends at once with `ClientGone` when the client leaves."""

    def __init__(self, receive: Receive, send: Send, request_id: str, hang_up: Callable[[], None]) -> None:
        self._receive = receive
        self._send = send
        self._hang_up = hang_up
        self._started = False
        self.request_id = request_id

    async def body(self, head: _Head) -> bytes:
        announced = head.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > MAX_BODY:
            raise TooLarge("Request exceeds the maximum size")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message["body"])
            size += len(message["body"])
            if size > MAX_BODY:
                raise TooLarge("Request exceeds the maximum size")
            if not message["more_body"]:
                return b"".join(parts)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        common = [(b"request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": common + headers})

    async def send(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, data: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        length = (b"content-length", str(len(data)).encode())
        await self.start(status, [(b"content-type", b"application/json"), length, *(headers or [])])
        await self.send(data, more=False)

    async def refuse(self, error: ApiError) -> None:
        if self._started:
            return
        headers = [] if error.retry_after is None else [(b"retry-after", f"{error.retry_after:g}".encode())]
        if error.status == 413:
            # The rest of the body is not read.
            headers.append((b"connection", b"close"))
        await self.answer(
            error.status, _json(frames.error_body(error.error_type, error.text, self.request_id)), headers
        )

    async def drop(self) -> None:
        """End the connection in the middle of the response."""
        self._hang_up()
        await self._receive()

    async def pause(self, seconds: float) -> None:
        # After the body, the next thing to receive is the disconnect.
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._receive()
        except TimeoutError:
            return
        raise ClientGone

    async def unless_gone(self, awaitable: Awaitable[Answer]) -> Answer:
        answers: list[Answer] = []
        gone = False

        async def think() -> None:
            answers.append(await awaitable)
            watcher.cancel()

        async def watch() -> None:
            nonlocal gone
            await self._receive()
            gone = True
            thinker.cancel()

        try:
            async with asyncio.TaskGroup() as tasks:
                watcher = tasks.create_task(watch())
                thinker = tasks.create_task(think())
        except* Exception as group:
            raise group.exceptions[0] from None
        if gone:
            raise ClientGone
        return answers[0]


async def _whole(reply: Reply, composed: frames.Composed, exchange: _Exchange) -> Ending:
    data = frames.message(composed)
    match reply.fault:
        case StreamError(type=kind, message=text):
            status = next((status for status, each in ERROR_TYPES.items() if each == kind), 500)
            await exchange.refuse(ApiError(status, kind, text))
            return "fault"
        case Drop():
            await exchange.start(200, [(b"content-type", b"application/json")])
            await exchange.send(data[: len(data) // 2], more=True)
            await exchange.drop()
            return "fault"
        case Stall(seconds=seconds):
            await exchange.pause(seconds)
        case Hold() as hold:
            await _hold(hold, exchange)
        case None:
            pass
    await exchange.answer(200, data)
    return "complete"


async def _stream(reply: Reply, composed: frames.Composed, exchange: _Exchange) -> Ending:
    events = frames.events(composed, reply.pace)
    fault = reply.fault
    cut = len(events) if fault is None else frames.position(fault.at, composed, events)
    await exchange.start(200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")])
    await _paced(events[:cut], reply.pace, exchange, last=fault is None)
    match fault:
        case None:
            return "complete"
        case StreamError(type=kind, message=text):
            await exchange.send(frames.error_event(kind, text, exchange.request_id), more=False)
            return "fault"
        case Drop():
            await exchange.drop()
            return "fault"
        case Stall(seconds=seconds):
            await exchange.pause(seconds)
        case Hold() as hold:
            await _hold(hold, exchange)
    await _paced(events[cut:], reply.pace, exchange, last=True)
    return "complete"


async def _paced(events: list[bytes], pace: Pace, exchange: _Exchange, *, last: bool) -> None:
    if not pace.per_token_s:
        await exchange.send(b"".join(events), more=not last)
        return
    waiting: list[bytes] = []
    for event in events:
        waiting.append(event)
        if frames.is_delta(event):
            await exchange.send(b"".join(waiting), more=True)
            waiting.clear()
            await exchange.pause(pace.per_token_s)
    await exchange.send(b"".join(waiting), more=not last)


async def _hold(hold: Hold, exchange: _Exchange) -> None:
    async def released() -> Answer:
        await hold.release.wait()
        return say("released")

    hold.reached.set()
    await exchange.unless_gone(released())


def _no_constant(name: str) -> None:
    raise ValueError(f"unexpected token {name}")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
_SURROGATE: Final = re.compile(rb"\\ud[89a-f]", re.IGNORECASE)


def _parse(body: bytes) -> JSON:
    """Stricter than Python: no NaN and no half of a surrogate pair, which an agent may cut out of a tool's output."""
    try:
        document: JSON = _DECODER.decode(body.decode())
        if _SURROGATE.search(body):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("The request body is not valid JSON: no low surrogate in string") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from error
    return document


def _witness(brain: object) -> Witness | None:
    return brain if isinstance(brain, Witness) else None


def _known(model: str) -> None:
    if not model.startswith(_KNOWN_MODEL):
        raise NotFound(f"model: {model}")


def _model(name: str) -> dict[str, JSON]:
    return {
        "type": "model",
        "id": name,
        "display_name": _MODELS.get(name, name),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "line": None,
        "capabilities": None,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": 1_000_000,
        "max_tokens": 128_000,
    }


def _model_page(query: Mapping[str, list[str]]) -> dict[str, JSON]:
    names = list(_MODELS)
    limit = query.get("limit", ["20"])[0]
    if not limit.isdigit() or not 1 <= int(limit) <= 1000:
        raise InvalidRequest("limit: Input should be between 1 and 1000")
    if after := query.get("after_id"):
        names = names[names.index(after[0]) + 1 :] if after[0] in names else []
    page = names[: int(limit)]
    return {
        "data": [_model(name) for name in page],
        "has_more": len(names) > len(page),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _json(value: JSON) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@asynccontextmanager
async def serve_scripted(
    brain: Brain,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    prefill: bool = False,
    minimum_cache_tokens: int = 0,
) -> AsyncIterator[str]:
    """Serve until the block ends, then raise what the brain raised, if it did. Yields the base URL."""
    state = ServerState()
    app = MessagesServer(brain, state, api_key=api_key, prefill=prefill, minimum_cache_tokens=minimum_cache_tokens)
    # The parts of uvicorn without its `Server`, which takes the process's signals and needs 0.2 s to stop.
    config = uvicorn.Config(
        app,
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        interface="asgi3",
        timeout_keep_alive=75,
    )
    config.load()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: HttpToolsProtocol(config, state, {}), host, port, family=socket.AF_INET, backlog=1024
    )
    address = listener.sockets[0].getsockname()
    try:
        yield f"http://{address[0]}:{address[1]}"
    finally:
        listener.close()
        for connection in list(state.connections):
            connection.transport.abort()
        if tasks := list(state.tasks):
            await asyncio.wait(tasks, timeout=5)
    if app.failure is not None:
        raise app.failure


async def _serve_until_signalled(brain: Brain, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serve_scripted(brain, host=host, port=port) as url:
        sys.stdout.write(f"ready {url}\n")
        sys.stdout.flush()
        await stop.wait()


def _brain(arguments: argparse.Namespace) -> Brain:
    if arguments.analyst:
        return Analyst()
    pace = Pace(arguments.delay_ms / 1000, arguments.token_delay_ms / 1000, arguments.chunk_chars)
    if arguments.script:
        return load_rules(Path(arguments.script), pace=pace)
    return lambda request: say(request.asked or "(nothing)", pace=pace)


def main() -> None:
    parser = argparse.ArgumentParser(prog="galley_server.demo.messages", description="A scripted Messages-API server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0, help="before the first token")
    parser.add_argument("--token-delay-ms", type=float, default=0, help="between two pieces")
    parser.add_argument("--chunk-chars", type=int, default=24, help="characters in a piece")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--script", metavar="FILE.json")
    which.add_argument(
        "--analyst", action="store_true", help="the rule-based data analyst of the demo, at its own pace"
    )
    arguments = parser.parse_args()
    try:
        brain = _brain(arguments)
    except ConfigError as error:
        parser.error(error.message)
    asyncio.run(_serve_until_signalled(brain, arguments.host, arguments.port))


if __name__ == "__main__":
    main()
