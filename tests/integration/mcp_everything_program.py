"""An MCP server with everything that the conformance suite and the door's own tests ask for, in both eras.

    python mcp_everything_program.py http|sse|stdio [--port PORT] [--json]

Over HTTP it prints its port on stdout when it accepts connections.
"""

import argparse
import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias

import uvicorn
from mcp.server import MCPServer, NotificationOptions
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPError
from mcp_types import (
    AudioContent,
    ClientCapabilities,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    JSONRPCMessage,
    ListRootsRequest,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(32))).decode()
SOUND = base64.b64encode(b"RIFF$\0\0\0WAVEfmt ").decode()


class Events(EventStore):
    """What was sent on each stream, so that a client can ask for the rest of it."""

    def __init__(self) -> None:
        self._sent: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._sent.append((stream_id, message))
        return str(len(self._sent))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        last = int(last_event_id)
        stream = self._sent[last - 1][0]
        for index, (of, message) in enumerate(self._sent[last:], last + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(index)))
        return stream


class Tenth(BaseModel):
    response: str = Field(description="What the user says")


class Defaults(BaseModel):
    name: str = Field(default="John Doe")
    age: int = Field(default=30)
    score: float = Field(default=95.5)
    status: str = Field(default="active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = Field(default=True)


class Choices(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})
    titledSingle: str = Field(
        json_schema_extra={"oneOf": [{"const": "v1", "title": "First"}, {"const": "v2", "title": "Second"}]}
    )
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": ["a", "b", "c"]}})
    titledMulti: list[str] = Field(
        json_schema_extra={"items": {"anyOf": [{"const": "x", "title": "X"}, {"const": "y", "title": "Y"}]}}
    )
    legacyEnum: str = Field(json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["One", "Two"]})


ADDRESS = {"street": {"type": "string"}, "city": {"type": "string"}}
SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": ADDRESS}},
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

server = MCPServer(name="everything", version="1.0.0", instructions="Try every tool.")


Question: TypeAlias = ElicitRequest | CreateMessageRequest | ListRootsRequest


def text(value: str) -> TextContent:
    return TextContent(type="text", text=value)


def form(message: str, field: str = "name") -> ElicitRequest:
    schema: Any = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(prompt: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=text(prompt))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=50))


@server.tool()
async def echo(text: str) -> str:
    """Says what it is told"""
    return text


@server.tool()
async def whoami(ctx: Context) -> str:
    """Shows the headers it was called with, as careless servers do"""
    return json.dumps(dict(ctx.headers or {}))


@server.tool()
async def environment() -> str:
    """Shows its environment, as careless servers do"""
    return json.dumps(dict(os.environ))


@server.tool()
async def wait(seconds: float, ctx: Context) -> str:
    """Waits, and says on stderr when it is cancelled"""
    try:
        await ctx.report_progress(0, 1, "waiting")
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        sys.stderr.write("cancelled\n")
        sys.stderr.flush()
        raise
    return "waited"


@server.tool()
async def test_simple_text() -> str:
    """Says one thing"""
    return "This is a simple text response for testing."


@server.tool()
async def test_image_content() -> list[ImageContent]:
    """An image"""
    return [ImageContent(type="image", data=PIXEL, mime_type="image/png")]


@server.tool()
async def test_audio_content() -> list[AudioContent]:
    """A sound"""
    return [AudioContent(type="audio", data=SOUND, mime_type="audio/wav")]


def embedded(uri: str, mime_type: str, content: str) -> EmbeddedResource:
    resource = TextResourceContents(uri=uri, mime_type=mime_type, text=content)
    return EmbeddedResource(type="resource", resource=resource)


@server.tool()
async def test_embedded_resource() -> list[EmbeddedResource]:
    """A resource"""
    return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@server.tool()
async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Three kinds of content"""
    image = ImageContent(type="image", data=PIXEL, mime_type="image/png")
    resource = embedded("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}')
    return [text("Multiple content types test:"), image, resource]


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Logs while it works"""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(line)
        await asyncio.sleep(0.02)
    return "logged"


@server.tool()
async def test_logging_tool(ctx: Context) -> str:
    """Logs if the client asks for it"""
    await ctx.info("a line")
    return "logged"


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Reports how far it is"""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(0.02)
    return "done"


async def asked(ctx: Context, **questions: Question) -> dict[str, Any] | InputRequiredResult:
    """The answers to these questions, or in the newer era what the client needs to be asked first."""
    if ctx.protocol_version == "2026-07-28":
        given = dict(ctx.input_responses or {})
        left = {key: question for key, question in questions.items() if key not in given}
        return given if not left else InputRequiredResult(input_requests=left)
    return {key: await older_answer(ctx, question) for key, question in questions.items()}


async def older_answer(ctx: Context, question: Question) -> Any:
    match question:
        case ElicitRequest(params=ElicitRequestFormParams() as asks):
            return await ctx.session.elicit_form(asks.message, asks.requested_schema, ctx.request_id)
        case CreateMessageRequest(params=asks):
            return await ctx.session.create_message(
                asks.messages, max_tokens=asks.max_tokens, related_request_id=ctx.request_id
            )
        case _:
            return await ctx.session.list_roots()


def form_of(message: str, fields: type[BaseModel]) -> ElicitRequest:
    schema = fields.model_json_schema()
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def user_said(answer: Any) -> str:
    return f"action={answer.action}, content={json.dumps(answer.content or {}, separators=(',', ':'))}"


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str | InputRequiredResult:
    """Asks the client's model"""
    got = await asked(ctx, model=sample(prompt))
    return got if isinstance(got, InputRequiredResult) else f"LLM response: {getattr(got['model'].content, 'text', '')}"


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str | InputRequiredResult:
    """Asks the user"""
    got = await asked(ctx, user=form_of(message, Tenth))
    return got if isinstance(got, InputRequiredResult) else f"User response: {user_said(got['user'])}"


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str | InputRequiredResult:
    """Asks the user, with defaults"""
    got = await asked(ctx, user=form_of("Please provide user information", Defaults))
    return got if isinstance(got, InputRequiredResult) else f"Elicitation completed: {user_said(got['user'])}"


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str | InputRequiredResult:
    """Asks the user to choose"""
    got = await asked(ctx, user=form_of("Please choose", Choices))
    return got if isinstance(got, InputRequiredResult) else f"Elicitation completed: {user_said(got['user'])}"


@server.tool()
async def test_error_handling() -> str:
    """Fails"""
    raise ToolError("This tool intentionally returns an error for testing")


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Closes its stream and goes on"""
    await ctx.close_sse_stream()
    await asyncio.sleep(0.1)
    return "Reconnection test completed successfully"


@server.tool()
async def json_schema_2020_12_tool(
    name: Annotated[str | None, Field(default=None)] = None,
) -> str:
    """Takes a name"""
    return name or ""


json_schema_2020_12 = server._tool_manager.get_tool("json_schema_2020_12_tool")
assert json_schema_2020_12 is not None
json_schema_2020_12.parameters = SCHEMA_2020_12


@server.tool()
async def test_x_mcp_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})],
) -> str:
    """Takes an argument that a header repeats"""
    return f"in {region}"


async def told_the_older_way(ctx: Context, tell: Callable[[], Awaitable[None]]) -> None:
    if ctx.protocol_version != "2026-07-28":
        await tell()


@server.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """Says that the tools have changed"""
    await ctx.notify_tools_changed()
    await told_the_older_way(ctx, ctx.session.send_tool_list_changed)
    return "told"


@server.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """Says that the prompts have changed"""
    await ctx.notify_prompts_changed()
    await told_the_older_way(ctx, ctx.session.send_prompt_list_changed)
    return "told"


@server.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Needs a client that samples"""
    capabilities = ctx.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(-32021, "sampling is needed", {"requiredCapabilities": {"sampling": {}}})
    return "sampled"


def content_of(answer: Any) -> dict[str, Any]:
    found = getattr(answer, "content", None)
    return found if isinstance(found, dict) else {}


@server.tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Reports and then asks"""
    await ctx.report_progress(1, 2, "asking")
    got = await asked(ctx, answer=form("An answer?"))
    return got if isinstance(got, InputRequiredResult) else "answered"


@server.tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Asks for a name"""
    got = await asked(ctx, user_name=form("What is your name?"))
    return got if isinstance(got, InputRequiredResult) else f"Hello, {content_of(got['user_name']).get('name')}!"


@server.tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Asks the client's model"""
    got = await asked(ctx, capital_question=sample("What is the capital of France?"))
    return got if isinstance(got, InputRequiredResult) else "The model has said it."


@server.tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Asks for the roots"""
    got = await asked(ctx, client_roots=ListRootsRequest())
    return got if isinstance(got, InputRequiredResult) else "The roots are known."


@server.tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Keeps its state with the client"""
    return with_state(await asked(ctx, confirm=form("Sure?", "ok")), "asked once", f"state-ok: {ctx.request_state}")


@server.tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """Keeps its state with the client"""
    return with_state(await asked(ctx, confirm=form("Sure?", "ok")), "precious", "state-ok")


@server.tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Asks for three things at once"""
    got = await asked(
        ctx, user_name=form("What is your name?"), greeting=sample("Greet."), client_roots=ListRootsRequest()
    )
    return with_state(got, "three", "all three")


@server.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Asks twice"""
    if ctx.request_state != "2":
        first = await asked(ctx, step1=form("What is your name?"))
        if isinstance(first, InputRequiredResult):
            return with_state(first, "1", "")
    return with_state(await asked(ctx, step2=form("Favourite colour?", "color")), "2", "asked twice")


def with_state(got: dict[str, Any] | InputRequiredResult, state: str, done: str) -> str | InputRequiredResult:
    return got.model_copy(update={"request_state": state}) if isinstance(got, InputRequiredResult) else done


@server.tool()
async def test_input_required_result_capabilities(ctx: Context) -> str | InputRequiredResult:
    """Asks what the client can answer"""
    declared = ctx.client_capabilities or ClientCapabilities()
    questions: dict[str, Question] = {}
    if declared.sampling is not None:
        questions["sampled"] = sample("Say something.")
    if declared.elicitation is not None:
        questions["told"] = form("Say something.")
    got = await asked(ctx, **questions)
    return got if isinstance(got, InputRequiredResult) else "answered"


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    return base64.b64decode(PIXEL)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    return "Watched resource content"


@server.prompt()
def test_simple_prompt() -> list[UserMessage]:
    """A simple prompt"""
    return [UserMessage("This is a simple prompt for testing.")]


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    """A prompt with arguments"""
    return [UserMessage(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """A prompt with a resource"""
    return [UserMessage(embedded(resourceUri, "text/plain", "Embedded resource content for testing."))]


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """A prompt with an image"""
    return [UserMessage(ImageContent(type="image", data=PIXEL, mime_type="image/png")), UserMessage("Look at it.")]


@server.prompt()
async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
    """A prompt that asks first"""
    got = await asked(ctx, user_context=form("In which context?", "context"))
    if isinstance(got, InputRequiredResult):
        return got
    return [UserMessage(f"In the context {content_of(got['user_context']).get('context')}")]


@server.completion()  # type: ignore[no-untyped-call, untyped-decorator]
async def complete(ref: Any, argument: Any, context: Any) -> Completion:
    return Completion(values=[argument.value + "-completed"], total=1, has_more=False)


async def _subscribe(ctx: Any, params: SubscribeRequestParams) -> EmptyResult:
    return EmptyResult()


async def _unsubscribe(ctx: Any, params: UnsubscribeRequestParams) -> EmptyResult:
    return EmptyResult()


async def _set_level(ctx: Any, params: Any) -> EmptyResult:
    return EmptyResult()


def older_methods() -> None:
    """What MCPServer leaves to the low-level server."""
    low = server._lowlevel_server
    low.add_request_handler("resources/subscribe", SubscribeRequestParams, _subscribe)
    low.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, _unsubscribe)
    low.add_request_handler("logging/setLevel", SetLevelRequestParams, _set_level)
    # It tells older clients of no change unless it is asked to.
    options = low.create_initialization_options
    low.create_initialization_options = lambda *_: options(NotificationOptions(True, True, True))  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=["http", "sse", "stdio"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["legacy", "modern"])
    chosen = parser.parse_args()
    older_methods()
    if chosen.transport == "stdio":
        server.run("stdio")
        return
    if chosen.transport == "sse":
        app = server.sse_app()
    else:
        app = server.streamable_http_app(event_store=Events(), retry_interval=100, json_response=chosen.json)
    listener = socket.create_server(("127.0.0.1", chosen.port))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(stripped(of_one_era(app, chosen.only)), log_level="warning", access_log=False)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def of_one_era(app: ASGIApp, era: str | None) -> ASGIApp:
    """Turn away the other era, each as its servers do."""
    if era is None:
        return app
    wanted = era == "modern"
    code, why = (-32022, "Unsupported protocol version") if wanted else (-32000, "Bad Request: no valid session")
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": why}}

    async def one_era(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and (headers.get(b"mcp-protocol-version") == b"2026-07-28") != wanted:
            await JSONResponse(body, 400)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return one_era


def stripped(app: ASGIApp) -> ASGIApp:
    """RFC 9110, 5.5: blanks around a value are no part of it. The HTTP parser leaves those behind it."""

    async def strip(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        await app(scope, receive, send)

    return strip


if __name__ == "__main__":
    main()
