"""Every rule of the Messages API that the scripted model enforces, in the words of the official API."""

from typing import get_args, get_type_hints

import pytest
from anthropic.types import ContentBlockParam, ToolParam
from anthropic.types.beta.message_create_params import MessageCreateParamsBase
from galley_server.demo import dialogue, shape, signature
from galley_server.demo.transcript import JSON, Request
from galley_server.errors import InvalidRequest

USER: JSON = {"role": "user", "content": "Hello"}
TOOL: JSON = {"name": "bash", "description": "Runs", "input_schema": {"type": "object", "properties": {}}}
EPHEMERAL: JSON = {"type": "ephemeral"}


def user(*blocks: JSON) -> JSON:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: JSON) -> JSON:
    return {"role": "assistant", "content": list(blocks)}


def text(text: str, **more: JSON) -> JSON:
    return {"type": "text", "text": text, **more}


def use(identity: str, **more: JSON) -> JSON:
    return {"type": "tool_use", "id": identity, "name": "bash", "input": {}, **more}


def result(identity: str, **more: JSON) -> JSON:
    return {"type": "tool_result", "tool_use_id": identity, "content": "ok", **more}


def thinking(words: str) -> JSON:
    return {"type": "thinking", "thinking": words, "signature": signature.sign(words)}


def body(**changes: JSON) -> dict[str, JSON]:
    whole: dict[str, JSON] = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [USER], **changes}
    return {name: value for name, value in whole.items() if value is not None}


def checked(document: JSON, *, betas: bool = False, prefill: bool = False) -> Request:
    request = shape.read_request(document, betas=betas)
    dialogue.check(request, prefill=prefill)
    return request


def complaint(document: JSON, *, prefill: bool = False) -> str:
    with pytest.raises(InvalidRequest) as caught:
        checked(document, prefill=prefill)
    return caught.value.message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "Input should be a valid dictionary"),
        (body(max_tokens=None), "max_tokens: Field required"),
        (body(max_tokens=0), "max_tokens: Input should be greater than or equal to 1"),
        (body(max_tokens="9"), "max_tokens: Input should be a valid integer"),
        (body(max_tokens=True), "max_tokens: Input should be a valid integer"),
        (body(model=None), "model: Field required"),
        (body(model=""), "model: String should have at least 1 character"),
        (body(model=7), "model: Input should be a valid string"),
        (body(messages=None), "messages: Field required"),
        (body(messages=[]), "messages: at least one message is required"),
        (body(messages={}), "messages: Input should be a valid list"),
        (body(stream="yes"), "stream: Input should be a valid boolean"),
        (body(max_output=1), "max_output: Extra inputs are not permitted"),
        (body(mcp_servers=[]), "mcp_servers: Extra inputs are not permitted"),
    ],
)
def test_a_malformed_top_level_is_refused_by_field(document: JSON, words: str) -> None:
    assert words in complaint(document)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "robot", "content": "x"}], 'messages: Unexpected role "robot"'),
        ([{"role": "system", "content": "x"}], 'messages: Unexpected role "system"'),
        ([{"content": "x"}], "messages.0.role: Field required"),
        ([{"role": "user"}], "messages.0.content: Field required"),
        ([{"role": "user", "content": 7}], "messages.0.content: Input should be a valid list"),
        ([{"role": "user", "content": "x", "name": "y"}], "messages.0.name: Extra inputs are not permitted"),
        ([assistant(text("Hi")), USER], 'messages: first message must use the "user" role'),
        ([user(text(""))], "messages: text content blocks must be non-empty"),
        ([user(text(" \n"))], "messages: text content blocks must contain non-whitespace text"),
        ([user()], "messages.0: all messages must have non-empty content"),
        ([USER, {"role": "assistant", "content": ""}, USER], "messages.1: all messages must have non-empty content"),
        ([user({"type": "sound"})], "messages.0.content.0: Input tag 'sound' found using 'type'"),
        ([user({"text": "x"})], "messages.0.content.0.type: Field required"),
        ([user({"type": "text"})], "messages.0.content.0.text.text: Field required"),
        ([user(text("x", texts="y"))], "messages.0.content.0.text.texts: Extra inputs are not permitted"),
        ([user("x")], "messages.0.content.0: Input should be a valid dictionary"),
        ([user({"type": "image", "source": {"type": "base64"}})], "source.base64.media_type: Field required"),
        ([user(use("a"))], "messages.0: `tool_use` blocks can only be in `assistant` messages"),
        ([USER, assistant(result("a"))], "messages.1: `tool_result` blocks can only be in `user` messages"),
        ([USER, {"role": "system", "content": [use("a")]}], "messages.1: a system message supports text blocks only"),
    ],
)
def test_a_malformed_message_is_refused_by_its_path(messages: JSON, words: str) -> None:
    assert words in complaint(body(messages=messages))


UNANSWERED = "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: "


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, assistant(use("a"))], UNANSWERED + "a."),
        ([USER, assistant(use("a"), use("b")), user(result("a"))], UNANSWERED + "b."),
        ([USER, assistant(use("a")), user(text("stop"))], UNANSWERED + "a."),
        ([USER, assistant(use("a")), user(text("Here:"), result("a"))], UNANSWERED + "a."),
        ([USER, assistant(use("a")), assistant(text("And?")), USER], UNANSWERED + "a."),
        (
            [USER, assistant(use("a"), use("a")), user(result("a"))],
            "messages.1.content.1: `tool_use` ids must be unique",
        ),
        (
            [USER, assistant(use("a")), user(result("a")), assistant(use("a")), user(result("a"))],
            "messages.3.content.0: `tool_use` ids must be unique",
        ),
        (
            [USER, assistant(use("a")), user(result("a"), result("a"))],
            "messages.2.content.1: each tool_use must have a single result. Found multiple `tool_result` blocks",
        ),
        ([user(result("a"))], "messages.0.content.0: unexpected `tool_use_id` found in `tool_result` blocks: a."),
        (
            [USER, assistant(use("a")), user(result("a")), assistant(text("Hm.")), user(result("a"))],
            "messages.4.content.0: unexpected `tool_use_id` found in `tool_result` blocks: a.",
        ),
        (
            [USER, assistant(use("a")), user(result("a"), result("z"))],
            "messages.2.content.1: unexpected `tool_use_id` found in `tool_result` blocks: z.",
        ),
        ([USER, assistant(use("toolu.1")), USER], "messages.1.content.0.tool_use.id: String should match pattern"),
        ([USER, assistant(use("a", input="{}")), USER], "tool_use.input: Input should be a valid dictionary"),
        (
            [USER, assistant(use("a", text="x")), USER],
            "messages.1.content.0.tool_use.text: Extra inputs are not permitted",
        ),
        (
            [USER, assistant(use("a")), user(result("a", is_error=True, content=""))],
            "messages.2.content.0.tool_result: content cannot be empty if `is_error` is true",
        ),
        (
            [USER, assistant(use("a")), user(result("a", content=[text("")]))],
            "messages: text content blocks must be non-empty",
        ),
        (
            [USER, assistant(use("a")), user(result("a", content=[use("b")]))],
            "messages.2.content.0.tool_result.content.0: Input tag 'tool_use' found using 'type'",
        ),
    ],
)
def test_tool_calls_and_results_must_pair(messages: JSON, words: str) -> None:
    assert words in complaint(body(messages=messages))


@pytest.mark.parametrize(
    "messages",
    [
        [USER, assistant(use("a"), use("b")), user(result("b"), result("a"))],
        [USER, assistant(use("a"), use("b")), user(result("b")), user(result("a"), text("Go on."))],
        [USER, assistant(text("Look:"), use("a")), user(result("a", content=[], cache_control=EPHEMERAL))],
        [USER, assistant(use("a", caller={"type": "direct"})), user({"type": "tool_result", "tool_use_id": "a"})],
        [USER, assistant(text("x", citations=None)), {"role": "system", "content": "Be brief."}, USER],
        [USER, USER],
    ],
)
def test_a_well_formed_dialogue_is_accepted(messages: JSON) -> None:
    assert checked(body(messages=messages)).messages


@pytest.mark.parametrize("words", ["It ends ", "It ends\n"])
def test_a_final_assistant_message_cannot_end_with_whitespace(words: str) -> None:
    found = complaint(body(messages=[USER, assistant(text(words))]), prefill=True)
    assert found == "messages: final assistant content cannot end with trailing whitespace"


def test_a_final_assistant_message_is_refused_unless_prefill_is_allowed() -> None:
    document = body(messages=[USER, assistant(text("The answer is"))])
    assert "does not support assistant message prefill" in complaint(document)
    assert checked(document, prefill=True).messages[-1].role == "assistant"


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "thinking", "thinking": "x"}, "messages.1.content.0.thinking.signature: Field required"),
        ({"type": "thinking", "thinking": "x", "signature": ""}, "messages.1.content.0: Invalid `signature`"),
        ({"type": "thinking", "thinking": "x", "signature": signature.sign("y")}, "Invalid `signature` in `thinking`"),
        ({"type": "redacted_thinking", "data": "bm90IG91cnM="}, "Invalid `data` in `redacted_thinking` block"),
        ({**thinking("x"), "cache_control": EPHEMERAL}, "thinking.cache_control: Extra inputs are not permitted"),  # type: ignore[dict-item]
    ],
)
def test_thinking_must_come_back_as_it_was_signed(block: JSON, words: str) -> None:
    assert words in complaint(body(messages=[USER, assistant(block, text("Hm.")), USER]))


def test_thinking_that_was_issued_is_accepted() -> None:
    redacted: JSON = {"type": "redacted_thinking", "data": signature.redacted()}
    assert checked(body(messages=[USER, assistant(thinking("x"), redacted, text("Hm.")), USER])).messages


def test_with_thinking_enabled_a_tool_call_must_bring_back_the_thinking_before_it() -> None:
    identity = signature.tool_use_id(thought=True)
    kept, dropped = (
        body(
            max_tokens=4000,
            thinking={"type": "enabled", "budget_tokens": 1024},
            messages=[USER, assistant(*blocks), user(result(identity))],
        )
        for blocks in ([thinking("x"), use(identity)], [use(identity)])
    )
    assert "Expected `thinking` or `redacted_thinking`, but found `tool_use`" in complaint(dropped)
    assert checked(kept).thinking


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("on", "thinking: Input should be a valid dictionary"),
        ({"type": "on"}, "thinking: Input tag 'on' found using 'type'"),
        ({"type": "enabled", "budget_tokens": 100}, "thinking.enabled.budget_tokens: Input should be greater"),
        ({"type": "enabled", "budget_tokens": 2000}, "`max_tokens` must be greater than `thinking.budget_tokens`"),
    ],
)
def test_a_bad_thinking_setting_is_refused(setting: JSON, words: str) -> None:
    assert words in complaint(body(thinking=setting))


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (7, "system: Input should be a valid string"),
        ({"type": "text", "text": "x"}, "system: Input should be a valid string"),
        (["x"], "system.0: Input should be a valid dictionary"),
        ([{"type": "image"}], "system.0.type: Input should be 'text'"),
        ([text("")], "system: text content blocks must be non-empty"),
    ],
)
def test_a_system_prompt_of_the_wrong_shape_is_refused(system: JSON, words: str) -> None:
    assert words in complaint(body(system=system))


def tool(**changes: JSON) -> JSON:
    assert isinstance(TOOL, dict)
    return {name: value for name, value in {**TOOL, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([tool(name=None)], "tools.0.custom.name: Field required"),
        ([tool(name="")], "tools.0.custom.name: String should have at least 1 character"),
        ([tool(name="a b")], "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"),
        ([tool(), tool()], "tools: Tool names must be unique."),
        ([tool(input_schema=None)], "tools.0.custom.input_schema: Field required"),
        ([tool(input_schema={})], "tools.0.custom.input_schema.type: Field required"),
        ([tool(input_schema={"type": "array"})], "tools.0.custom.input_schema.type: Input should be 'object'"),
        (
            [tool(input_schema={"type": "object", "properties": []})],
            "tools.0.custom.input_schema: JSON schema is invalid",
        ),
        ([tool(input_schema={"type": "object", "properties": {"a": 1}})], "JSON schema is invalid"),
        ([tool(input_schema={"type": "object", "required": "a"})], "JSON schema is invalid"),
        (
            [tool(input_schema={"type": "object", "anyOf": []})],
            "does not support oneOf, allOf, or anyOf at the top level",
        ),
        ([tool(input_schema={"type": "object", "properties": {"a b": {}}})], "Property keys should match pattern"),
        ([tool(function={})], "tools.0.custom.function: Extra inputs are not permitted"),
        ("bash", "tools: Input should be a valid list"),
    ],
)
def test_a_bad_tool_is_refused(tools: JSON, words: str) -> None:
    assert words in complaint(body(tools=tools))


@pytest.mark.parametrize(
    ("choice", "tools", "words"),
    [
        ({"type": "must"}, [TOOL], "tool_choice: Input tag 'must'"),
        ({"type": "auto"}, [], "tool_choice may only be specified while providing tools."),
        ({"type": "tool", "name": "grep"}, [TOOL], "Tool 'grep' not found in provided tools"),
    ],
)
def test_a_bad_tool_choice_is_refused(choice: JSON, tools: list[JSON], words: str) -> None:
    assert words in complaint(body(tool_choice=choice, tools=tools))


def test_more_than_four_cache_breakpoints_are_refused_wherever_they_stand() -> None:
    marked = text("x", cache_control=EPHEMERAL)
    document = body(tools=[tool(cache_control=EPHEMERAL)], system=[marked], messages=[user(marked, marked)])
    assert checked(document).messages
    assert complaint({**document, "cache_control": EPHEMERAL}) == (
        "A maximum of 4 blocks with cache_control may be provided. Found 5."
    )


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ({"type": "forever"}, "messages.0.content.0.text.cache_control.type: Input should be 'ephemeral'"),
        ({"type": "ephemeral", "ttl": "2h"}, "cache_control.ephemeral.ttl: Input should be '5m' or '1h'"),
        ({"type": "ephemeral", "scope": "all"}, "cache_control.ephemeral.scope: Extra inputs are not permitted"),
    ],
)
def test_a_bad_breakpoint_is_refused(control: JSON, words: str) -> None:
    assert words in complaint(body(messages=[user(text("x", cache_control=control))]))


def test_a_long_breakpoint_cannot_come_after_a_short_one() -> None:
    long: JSON = {"type": "ephemeral", "ttl": "1h"}
    short_first = [user(text("x", cache_control=EPHEMERAL), text("y", cache_control=long))]
    assert complaint(body(messages=short_first)).startswith("messages.0.content.1.cache_control.ttl: a ttl='1h'")
    assert checked(body(messages=[user(text("x", cache_control=long), text("y", cache_control=EPHEMERAL))])).messages


def test_counting_tokens_needs_no_max_tokens_and_takes_none() -> None:
    document: JSON = {"model": "claude-sonnet-5-5", "messages": [USER]}
    assert shape.read_request(document, betas=False, counting=True).max_tokens == 0
    with pytest.raises(InvalidRequest, match="max_tokens: Extra inputs are not permitted"):
        shape.read_request(body(), betas=False, counting=True)


def test_the_tables_of_fields_are_those_of_the_official_sdk() -> None:
    for param in get_args(ContentBlockParam):
        hints = get_type_hints(param)
        (kind,) = get_args(hints["type"])
        required, optional = shape.BLOCKS[kind]
        assert required | optional | {"type"} == set(hints), kind
    assert frozenset(get_type_hints(ToolParam)) == shape.TOOL_FIELDS


def test_every_field_the_official_sdk_can_send_is_known() -> None:
    fields = set(MessageCreateParamsBase.__annotations__) - {"betas", "user_profile_id", "workspace_id"}
    assert fields - shape.CREATED == set()
