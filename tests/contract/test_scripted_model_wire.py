"""The unmodified official SDK, sync and async, drives the scripted model over the real wire."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anthropic
import anyio.to_thread
import httpx2
import pytest
from anthropic.lib.streaming import AsyncMessageStreamManager
from anthropic.types import ContentBlock, Message, MessageParam, RawMessageStreamEvent, TextBlock, ToolResultBlockParam
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import (
    ApiError,
    Brain,
    Drop,
    Hold,
    Pace,
    Place,
    Reply,
    Stall,
    StreamError,
    Usage,
    call,
    say,
)
from galley_server.demo.script import Script, ScriptExhausted
from galley_server.demo.transcript import RedactedThinking, Request, Text, Thinking, ToolUse
from pydantic import TypeAdapter

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"
HELLO: MessageParam = {"role": "user", "content": "Hello"}
EVERYTHING = Reply(
    (
        Thinking("Two tools are needed, I think."),
        RedactedThinking(),
        Text('Looking: "é", \\ and 🍞.'),
        ToolUse("bash", {"command": "ls -l /workspace", "timeout_ms": 5}),
        ToolUse("now", {}),
    ),
    pace=Pace(chunk_chars=5),
)


@asynccontextmanager
async def client_of(brain: Brain) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        asyncio.timeout(20),
        serve_scripted(brain) as url,
        anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0) as client,
    ):
        yield client


def stream_of(client: anthropic.AsyncAnthropic) -> AsyncMessageStreamManager[None]:
    return client.messages.stream(model=MODEL, max_tokens=100, messages=[HELLO])


async def ask(client: anthropic.AsyncAnthropic) -> Message:
    async with stream_of(client) as stream:
        return await stream.get_final_message()


async def raw_lines(client: anthropic.AsyncAnthropic, start: str) -> list[str]:
    async with client.messages.with_streaming_response.create(
        model=MODEL, max_tokens=9, messages=[HELLO], stream=True
    ) as response:
        return [line.removeprefix(start) async for line in response.iter_lines() if line.startswith(start)]


async def test_a_stream_carries_every_block_kind_unchanged() -> None:
    async with client_of(Script(EVERYTHING)) as client:
        message = await ask(client)
    thinking, redacted, text, bash, now = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "Two tools are needed, I think."
    assert thinking.signature
    assert redacted.type == "redacted_thinking"
    assert text.type == "text"
    assert text.text == 'Looking: "é", \\ and 🍞.'
    assert bash.type == "tool_use"
    assert bash.input == {"command": "ls -l /workspace", "timeout_ms": 5}
    assert now.type == "tool_use"
    assert now.input == {}
    assert message.stop_reason == "tool_use"


async def test_the_events_come_in_the_order_of_the_official_wire() -> None:
    reply = Reply((Text("one two"), ToolUse("bash", {"a": 1})), pace=Pace(chunk_chars=4))
    async with client_of(Script(reply)) as client:
        names = await raw_lines(client, "event: ")
    delta = "content_block_delta"
    assert names == [
        *("message_start", "content_block_start", "ping", delta, delta, "content_block_stop"),
        *("content_block_start", delta, delta, delta, "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


async def test_every_event_is_valid_for_the_official_types_to_the_letter() -> None:
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    async with client_of(Script(EVERYTHING, Reply((), "refusal"))) as client:
        events = await raw_lines(client, "data: ") + await raw_lines(client, "data: ")
    for event in events:
        if event != '{"type":"ping"}':
            adapter.validate_json(event, strict=True, extra="forbid")


@pytest.mark.parametrize("reply", [EVERYTHING, Reply((), "refusal")])
async def test_a_whole_message_is_valid_for_the_official_type_to_the_letter(reply: Reply) -> None:
    async with client_of(Script(reply)) as client:
        response = await client.messages.with_raw_response.create(model=MODEL, max_tokens=9, messages=[HELLO])
        TypeAdapter(Message).validate_json(await response.read(), strict=True, extra="forbid")


async def test_the_sync_sdk_drives_it_too() -> None:
    def drive(url: str) -> tuple[list[ContentBlock], str, int, list[str]]:
        with anthropic.Anthropic(api_key="k", base_url=url, max_retries=0) as client:
            whole = client.messages.create(model=MODEL, max_tokens=9, messages=[HELLO])
            with client.messages.stream(model=MODEL, max_tokens=9, messages=[HELLO]) as stream:
                streamed = "".join(stream.text_stream)
            count = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "x" * 400}])
            return whole.content, streamed, count.input_tokens, [model.id for model in client.models.list(limit=1)]

    async with asyncio.timeout(20), serve_scripted(Script(say("first"), say("second"))) as url:
        first, second, tokens, models = await anyio.to_thread.run_sync(drive, url)
    assert first == [TextBlock(type="text", text="first")]
    assert second == "second"
    assert 100 <= tokens <= 120
    assert models == ["scripted-1", "scripted-1-mini"]


async def test_what_it_said_can_be_sent_back_to_it() -> None:
    script = Script(EVERYTHING, say("Done."))
    async with client_of(script) as client:
        first = await ask(client)
        results: list[ToolResultBlockParam] = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "ok"}
            for block in first.content
            if block.type == "tool_use"
        ]
        answer = await client.messages.create(
            model=MODEL,
            max_tokens=2000,
            thinking={"type": "enabled", "budget_tokens": 1024},
            messages=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": results},
            ],
        )
    assert answer.content[0].type == "text"
    assert [(use.name, result.text) for use, result in script.requests[1].steps] == [("bash", "ok"), ("now", "ok")]
    assert script.endings == ["complete", "complete"]


@pytest.mark.parametrize(
    ("status", "error_type", "error"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (403, "permission_error", anthropic.PermissionDeniedError),
        (404, "not_found_error", anthropic.NotFoundError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (529, "overloaded_error", anthropic.APIStatusError),
    ],
)
async def test_a_refused_request_carries_the_official_envelope(
    status: int, error_type: str, error: type[anthropic.APIStatusError]
) -> None:
    async with client_of(Script(ApiError(status, retry_after=7))) as client:
        with pytest.raises(error) as caught:
            await ask(client)
    assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "7"
    body = caught.value.response.json()
    assert (body["type"], body["error"]["type"]) == ("error", error_type)
    assert body["request_id"] == caught.value.response.headers["request-id"]


async def test_an_error_event_in_the_stream_reaches_the_client_after_the_events_before_it() -> None:
    script = Script(Reply((Text("x" * 100),), fault=StreamError("text")))
    seen: list[str] = []
    async with client_of(script) as client, stream_of(client) as stream:
        try:
            async for event in stream:
                seen.append(event.type)
        except anthropic.APIStatusError as error:
            seen.append(error.type or "")
    assert seen[-1] == "overloaded_error"
    assert "content_block_delta" in seen
    assert "content_block_stop" not in seen
    assert script.endings == ["fault"]


@pytest.mark.parametrize("at", [0, 1, 4, "text", "tool_use"])
async def test_a_dropped_connection_ends_the_stream_without_an_end(at: Place) -> None:
    reply = Reply((Text("x" * 100), ToolUse("bash", {"command": "y" * 100})), fault=Drop(at))
    async with client_of(Script(reply)) as client:
        with pytest.raises((httpx2.TransportError, anthropic.APIConnectionError)):
            await ask(client)


async def test_a_request_that_does_not_stream_meets_the_same_faults() -> None:
    async with client_of(Script(Reply((Text("x"),), fault=Drop()), Reply((Text("x"),), fault=StreamError()))) as client:
        question = functools.partial(client.messages.create, model=MODEL, max_tokens=9, messages=[HELLO])
        with pytest.raises((httpx2.TransportError, anthropic.APIConnectionError)):
            await question()
        with pytest.raises(anthropic.APIStatusError) as caught:
            await question()
    assert caught.value.status_code == 529


async def test_a_held_stream_waits_in_the_middle_until_it_is_released() -> None:
    hold = Hold("text")
    reply = Reply((Text("before and after"),), fault=hold, pace=Pace(chunk_chars=8))
    async with client_of(Script(reply)) as client, stream_of(client) as stream:
        texts = aiter(stream.text_stream)
        assert await anext(texts) == "before a"
        await hold.reached.wait()
        hold.release.set()
        assert await anext(texts) == "nd after"


async def test_a_client_that_leaves_a_stalled_stream_is_noticed() -> None:
    script = Script(Reply((Text("never ends"),), fault=Stall("text")))
    async with client_of(script) as client:
        async with stream_of(client) as stream:
            async for _ in stream.text_stream:
                break
        assert await script.finished() == "client_gone"


async def test_an_open_stream_does_not_keep_the_server_from_ending() -> None:
    async with asyncio.timeout(5):
        async with client_of(Script(Reply((Text("never ends"),), fault=Stall(1)))) as client:
            stream = await client.messages.create(model=MODEL, max_tokens=9, messages=[HELLO], stream=True)
        await stream.close()


async def test_a_brain_may_wait_and_is_let_go_when_the_client_leaves() -> None:
    asked, let_go = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Reply:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            let_go.set()
        return say("too late")

    async with client_of(slow) as client, asyncio.TaskGroup() as tasks:
        question = tasks.create_task(ask(client))
        await asked.wait()
        question.cancel()
        await let_go.wait()


async def test_the_pace_delays_the_first_token_and_every_piece() -> None:
    pace = Pace(first_token_s=0.1, per_token_s=0.02, chunk_chars=1)
    async with client_of(Script(Reply((Text("abcde"),), pace=pace))) as client:
        start = time.monotonic()
        await ask(client)
    assert time.monotonic() - start >= 0.2


async def test_an_exhausted_script_is_a_clear_failure_where_the_server_was_started() -> None:
    async def ask_twice() -> None:
        async with client_of(Script(say("only one"))) as client:
            await ask(client)
            with pytest.raises(anthropic.BadRequestError, match="has no reply"):
                await ask(client)

    with pytest.raises(ScriptExhausted, match=r"request 2 has no reply.*user.*Hello"):
        await ask_twice()


async def test_a_usage_can_be_dictated() -> None:
    usage = Usage(1, 2, cache_read=3, cache_creation_5m=4, cache_creation_1h=5)
    async with client_of(Script(Reply((Text("x"),), usage=usage))) as client:
        seen = (await ask(client)).usage
    assert (seen.input_tokens, seen.output_tokens, seen.cache_read_input_tokens) == (1, 2, 3)
    assert seen.cache_creation_input_tokens == 9


async def test_what_is_repeated_behind_a_breakpoint_is_read_from_the_cache() -> None:
    script = Script(call("bash", command="ls"), say("Done."))
    async with client_of(script) as client:
        conversation: list[MessageParam] = [{"role": "user", "content": "Where is it? " * 50}]
        question = functools.partial(
            client.messages.create,
            model=MODEL,
            max_tokens=9,
            system=[{"type": "text", "text": "You are a cook. " * 50, "cache_control": {"type": "ephemeral"}}],
            cache_control={"type": "ephemeral"},
        )
        first = await question(messages=conversation)
        assert first.content[0].type == "tool_use"
        conversation += [
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": first.content[0].id, "content": "here"}],
            },
        ]
        second = await question(messages=conversation)
    assert first.usage.cache_read_input_tokens == 0
    assert second.usage.cache_read_input_tokens == first.usage.cache_creation_input_tokens
    assert second.usage.input_tokens == 0


async def test_a_key_is_required_and_may_come_either_way() -> None:
    async with serve_scripted(Script(say("x"), say("x")), api_key="right") as url, httpx2.AsyncClient() as client:
        body = {"model": MODEL, "max_tokens": 1, "messages": [HELLO]}
        statuses = [
            (await client.post(f"{url}/v1/messages?beta=true", json=body, headers=headers)).status_code
            for headers in (
                {"anthropic-version": "2023-06-01"},
                {"anthropic-version": "2023-06-01", "x-api-key": "wrong"},
                {"anthropic-version": "2023-06-01", "x-api-key": "right", "anthropic-beta": "a-2026-01-01,b"},
                {"anthropic-version": "2023-06-01", "authorization": "Bearer right"},
            )
        ]
    assert statuses == [401, 401, 200, 200]


async def test_the_beta_namespace_of_the_sdk_is_served_by_the_same_path() -> None:
    async with client_of(Script(say("x"))) as client:
        message = await client.beta.messages.create(
            model=MODEL,
            max_tokens=9,
            messages=[{"role": "user", "content": "x"}],
            betas=["context-management-2025-06-27"],
        )
    assert message.stop_reason == "end_turn"


async def test_models_are_listed_page_by_page_and_retrieved_by_name() -> None:
    async with client_of(Script()) as client:
        names = [model.id async for model in client.models.list(limit=1)]
        one = await client.models.retrieve(names[0])
        with pytest.raises(anthropic.NotFoundError, match="model: gpt"):
            await client.models.retrieve("gpt")
    assert names == ["scripted-1", "scripted-1-mini"]
    assert one.lifecycle == "active"
