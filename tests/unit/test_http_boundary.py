"""The request boundary: ids, envelopes, bodies that are too large or stop coming, and what a defect shows."""

import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest
from galley_server.errors import Conflict
from galley_server.http.answer import Json
from galley_server.http.boundary import Boundary, Endpoint, Operation, unknown_path
from galley_server.http.call import Call
from galley_server.http.query import whole
from galley_server.secret import Secret
from galley_server.wire.base import Wire
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

pytestmark = pytest.mark.anyio

KEY = "right-key-0123456789"
LIMIT = 1000


class Note(Wire):
    text: str


class Half:
    """An answer that breaks when its status is out."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise Conflict("too late")


async def echo(call: Call) -> ASGIApp:
    return Json((await call.json(Note)).model_dump_json().encode())


async def once(call: Call) -> ASGIApp:
    await call.nothing()
    found = call.once()
    return Json(b"null" if found is None else f'["{found.key}","{found.fingerprint}"]'.encode())


async def fail(call: Call) -> ASGIApp:
    raise ZeroDivisionError("secret detail")


async def half(call: Call) -> ASGIApp:
    return Half()


def boundary() -> ASGIApp:
    operations: dict[str, Callable[[Call], Awaitable[ASGIApp]]] = {"/echo": echo, "/once": once, "/fail": fail}
    routes = [Route(path, Endpoint({"POST": Operation(do)}, body_limit=LIMIT)) for path, do in operations.items()]
    routes.append(Route("/half", Endpoint({"GET": Operation(half, {"limit": whole})}, body_limit=LIMIT)))
    routes.append(Route("/healthz", Endpoint({"GET": Operation(half)}, body_limit=0)))
    return Boundary(Router(routes, redirect_slashes=False, default=unknown_path), Secret(KEY))


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(boundary())
    async with httpx2.AsyncClient(transport=transport, base_url="http://galley", headers={"x-api-key": KEY}) as client:
        yield client


async def test_every_answer_has_an_id(client: httpx2.AsyncClient) -> None:
    good = await client.post("/echo", json={"text": "hi"})
    bad = await client.post("/echo", json={})
    assert good.status_code == 200
    assert good.headers["request-id"].startswith("req_")
    assert bad.json()["request_id"] == bad.headers["request-id"] != good.headers["request-id"]


async def test_without_the_key_nothing_is_told(client: httpx2.AsyncClient) -> None:
    for path in ("/echo", "/nowhere"):
        answer = await client.post(path, headers={"x-api-key": "wrong"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "/nowhere is not a path of this server"),
        ("POST", "/echo/", 404, "/echo/ is not a path of this server"),
        ("GET", "/echo", 405, "GET is not a method of /echo: use POST"),
        ("HEAD", "/half", 405, ""),
        ("PATCH", "/echo", 405, "PATCH is not a method of /echo: use POST"),
        ("POST", "/once?x=1", 400, "'x': unknown query parameter; this call takes none"),
    ],
)
async def test_a_wrong_address_gets_the_envelope_too(
    client: httpx2.AsyncClient, method: str, path: str, status: int, message: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    assert not message or answer.json()["error"]["message"] == message


async def test_a_refused_method_is_told_the_right_one(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/echo")).headers["allow"] == "POST"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_of_another_type_is_refused(client: httpx2.AsyncClient, kind: str) -> None:
    answer = await client.post("/echo", content=b'{"text":"hi"}', headers={"content-type": kind})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


async def test_the_charset_of_the_type_is_not_minded(client: httpx2.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await client.post("/echo", content=b'{"text":"hi"}', headers=headers)).status_code == 200


async def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    status = await post_raw("/echo", receive, length=LIMIT + 1)
    assert status == 413


async def test_a_body_that_grows_over_the_limit_is_refused_while_it_comes() -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 300
        return {"type": "http.request", "body": b" " * 300, "more_body": True}

    assert await post_raw("/echo", receive) == 413
    assert read == 1200


async def test_a_body_of_just_the_limit_passes(client: httpx2.AsyncClient) -> None:
    body = b'{"text":"' + b"x" * (LIMIT - 11) + b'"}'
    headers = {"content-type": "application/json"}
    assert (await client.post("/echo", content=body, headers=headers)).status_code == 200
    assert (await client.post("/echo", content=body + b" ", headers=headers)).status_code == 413


async def test_a_client_that_hangs_up_gets_no_answer() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert await post_raw("/echo", receive) is None


async def test_a_call_without_a_body_takes_an_empty_object_and_no_other(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/once")).status_code == 200
    assert (await client.post("/once", json={})).status_code == 200
    assert (await client.post("/once", json={"x": 1})).status_code == 400


async def test_an_idempotency_key_comes_with_the_requests_fingerprint(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/once", headers={"idempotency-key": "k-1"})
    assert answer.json() == ["k-1", hashlib.sha256(b"POST /once\n").hexdigest()]
    assert (await client.post("/once")).json() is None


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256])
async def test_a_key_that_is_none_is_refused(client: httpx2.AsyncClient, key: str) -> None:
    answer = await client.post("/once", headers={b"idempotency-key": key.encode()})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("idempotency-key: ")


async def test_a_defect_shows_nothing_but_where_to_look(
    client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await client.post("/fail")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "secret detail" in caplog.text
    assert answer.headers["request-id"] in caplog.text
    assert answer.headers["x-should-retry"] == "false"


async def test_an_answer_that_breaks_half_way_does_not_look_whole(client: httpx2.AsyncClient) -> None:
    with pytest.raises(ConnectionAbortedError):
        await client.get("/half")


async def test_a_websocket_is_turned_away() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await boundary()({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def post_raw(path: str, receive: Receive, *, length: int | None = None) -> int | None:
    """POST below the client's own idea of a body; return the status, None if there was no answer."""
    headers = [(b"x-api-key", KEY.encode()), (b"content-type", b"application/json")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    await boundary()(scope, receive, send)
    return statuses[0] if statuses else None
