"""One request to a model endpoint that misbehaves: every fault is typed, and no secret or foreign body is told on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from galley_server.brain.model import MessagesModel, ModelFailed, ModelRequest
from galley_server.secret import Secret
from galley_server.settings import ModelSettings

pytestmark = pytest.mark.anyio
KEY = "sk-canary-0123456789"
REQUEST = ModelRequest(model="m", system=(), messages=({"role": "user", "content": "hi"},), tools=())
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"content":[],"model":"m","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(raw: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    return handle


@asynccontextmanager
async def model_of(raw: bytes) -> AsyncIterator[MessagesModel]:
    server = await asyncio.start_server(answering(raw), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = ModelSettings(api_key=Secret(KEY), base_url=f"http://127.0.0.1:{port}")
    async with server, MessagesModel.open(settings) as model:
        yield model


async def failure_of(raw: bytes) -> ModelFailed:
    async with model_of(raw) as model:
        with pytest.raises(ModelFailed) as caught:
            await model.answer(REQUEST, lambda step: None)
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [
        OK + START,
        OK + START + b"event: message_delta\ndata: {not json\n\n",
        OK + START + b'event: content_block_delta\ndata: {"type":"content_block_delta","index":7,"delta":'
        b'{"type":"text_delta","text":"x"}}\n\n',
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>hello</html>",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>secret page</html>",
        b"",
    ],
    ids=["cut off", "broken json", "a delta without its block", "a web page", "a gateway's page", "nothing"],
)
async def test_an_endpoint_with_a_form_of_its_own_is_a_fault_that_is_retried(raw: bytes) -> None:
    failure = await failure_of(raw)
    assert failure.retryable
    assert failure.type == "model_request_failed_error"
    assert "secret page" not in failure.message


async def test_an_endpoint_that_echoes_the_key_does_not_make_us_tell_it() -> None:
    body = b'{"type":"error","error":{"type":"authentication_error","message":"bad key %s"}}' % KEY.encode()
    head = b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    failure = await failure_of(head + body)
    assert not failure.retryable
    assert KEY not in failure.message
    assert "bad key ***" in failure.message


async def test_without_a_key_the_error_says_which_setting_to_give() -> None:
    async with MessagesModel.open(ModelSettings()) as model:
        with pytest.raises(ModelFailed, match="GALLEY_MODEL_API_KEY") as caught:
            await model.answer(REQUEST, lambda step: None)
    assert not caught.value.retryable
