"""The shape of a Messages-API request: field by field, refused in the words of the official API. No I/O here.

What is between messages (pairing of tool calls, order, cache breakpoints) is in `dialogue`. One departure: the official
API takes `max_tokens: 0` to warm a cache; an agent that sends it has lost its setting, so it is refused here.
"""

import re
from collections.abc import Mapping
from typing import Final

from galley_server.demo.transcript import (
    JSON,
    Block,
    Message,
    Opaque,
    RedactedThinking,
    Request,
    Role,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
)
from galley_server.errors import InvalidRequest

_COUNTED: Final = frozenset(
    {
        "cache_control",
        "context_management",
        "mcp_servers",
        "messages",
        "model",
        "output_config",
        "speed",
        "system",
        "thinking",
        "tool_choice",
        "tools",
        "billing_policy",
        "compaction",
    }
)
CREATED: Final = _COUNTED | frozenset(
    {
        "container",
        "diagnostics",
        "inference_geo",
        "max_tokens",
        "metadata",
        "service_tier",
        "stop_sequences",
        "stream",
        "temperature",
        "top_k",
        "top_p",
        "fallback_credit_token",
        "fallbacks",
        "output_format",
        "thread",
    }
)
_BETA_ONLY: Final = frozenset(
    {
        "billing_policy",
        "compaction",
        "context_management",
        "fallback_credit_token",
        "fallbacks",
        "mcp_servers",
        "output_format",
        "thread",
    }
)

# type: (required, optional). A test holds this table against the types of the official SDK.
BLOCKS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    name: (frozenset(required.split()), frozenset(optional.split()))
    for name, required, optional in (
        ("text", "text", "cache_control citations"),
        ("image", "source", "cache_control transformations"),
        ("document", "source", "cache_control citations context title"),
        ("search_result", "content source title", "cache_control citations"),
        ("thinking", "signature thinking", ""),
        ("redacted_thinking", "data", ""),
        ("tool_use", "id input name", "cache_control caller toolset_name"),
        ("tool_result", "tool_use_id", "cache_control content is_error toolset_name"),
        ("server_tool_use", "id input name", "cache_control caller"),
        ("web_search_tool_result", "content tool_use_id", "cache_control caller"),
        ("web_fetch_tool_result", "content tool_use_id", "cache_control caller"),
        ("code_execution_tool_result", "content tool_use_id", "cache_control"),
        ("bash_code_execution_tool_result", "content tool_use_id", "cache_control"),
        ("text_editor_code_execution_tool_result", "content tool_use_id", "cache_control"),
        ("tool_search_tool_result", "content tool_use_id", "cache_control"),
        ("container_upload", "file_id", "cache_control"),
    )
}
_RESULT_BLOCKS: Final = frozenset(
    {
        "text",
        "image",
        "document",
        "search_result",
        "tool_reference",
        "browser_state",
    }
)
TOOL_FIELDS: Final = frozenset(
    {
        "allowed_callers",
        "cache_control",
        "defer_loading",
        "description",
        "eager_input_streaming",
        "input_examples",
        "input_schema",
        "name",
        "strict",
        "type",
    }
)
_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_TOOL_USE_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_PROPERTY: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def read_request(body: JSON, *, betas: bool, counting: bool = False) -> Request:
    """Check every field and return what the body says; `counting` is the smaller body of `count_tokens`."""
    if not isinstance(body, dict):
        raise InvalidRequest("Input should be a valid dictionary or object to extract fields from")
    _known_fields(body, _COUNTED if counting else CREATED, betas=betas)
    max_tokens = 0 if counting else _max_tokens(body)
    model = _field(body, "model")
    if not isinstance(model, str):
        raise InvalidRequest("model: Input should be a valid string")
    if not model:
        raise InvalidRequest("model: String should have at least 1 character")
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidRequest("stream: Input should be a valid boolean")
    if "cache_control" in body:
        _cache_control(body["cache_control"], "cache_control")
    tool_names = _tools(body.get("tools", []))
    _tool_choice(body.get("tool_choice"), tool_names)
    return Request(
        model=model,
        max_tokens=max_tokens,
        system=_system(body.get("system", "")),
        messages=_messages(_field(body, "messages")),
        tool_names=tool_names,
        stream=stream,
        thinking=_thinking_enabled(body.get("thinking"), max_tokens),
        body=body,
    )


def _known_fields(body: Mapping[str, JSON], known: frozenset[str], *, betas: bool) -> None:
    for name in body:
        if name not in known or (name in _BETA_ONLY and not betas):
            raise InvalidRequest(f"{name}: Extra inputs are not permitted")


def _field(body: Mapping[str, JSON], name: str, path: str = "") -> JSON:
    if name not in body:
        raise InvalidRequest(f"{path}{name}: Field required")
    return body[name]


def _text(body: Mapping[str, JSON], name: str, path: str) -> str:
    value = _field(body, name, path)
    if not isinstance(value, str):
        raise InvalidRequest(f"{path}{name}: Input should be a valid string")
    return value


def _max_tokens(body: Mapping[str, JSON]) -> int:
    value = _field(body, "max_tokens")
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest("max_tokens: Input should be a valid integer")
    if value < 1:
        raise InvalidRequest("max_tokens: Input should be greater than or equal to 1")
    return value


def _thinking_enabled(value: JSON, max_tokens: int) -> bool:
    """True for manual extended thinking, the one form in which a dropped thinking block is an error."""
    if value is None:
        return False
    if not isinstance(value, dict):
        raise InvalidRequest("thinking: Input should be a valid dictionary or object to extract fields from")
    kind = _field(value, "type", "thinking.")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise InvalidRequest(
            f"thinking: Input tag {kind!r} found using 'type' does not match any of the expected tags: 'adaptive', "
            "'between_tools', 'disabled', 'enabled'"
        )
    if kind != "enabled":
        return False
    budget = _field(value, "budget_tokens", "thinking.enabled.")
    if not isinstance(budget, int) or budget < 1024:
        raise InvalidRequest("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
    if max_tokens and budget >= max_tokens:
        raise InvalidRequest("`max_tokens` must be greater than `thinking.budget_tokens`")
    return True


def _cache_control(value: JSON, path: str) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}: Input should be a valid dictionary or object to extract fields from")
    if _field(value, "type", f"{path}.") != "ephemeral":
        raise InvalidRequest(f"{path}.type: Input should be 'ephemeral'")
    for name in value:
        if name not in ("type", "ttl"):
            raise InvalidRequest(f"{path}.ephemeral.{name}: Extra inputs are not permitted")
    if value.get("ttl", "5m") not in ("5m", "1h"):
        raise InvalidRequest(f"{path}.ephemeral.ttl: Input should be '5m' or '1h'")


def _system(value: JSON) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequest("system: Input should be a valid string or a list of text blocks")
    texts: list[str] = []
    for index, block in enumerate(value):
        path = f"system.{index}"
        if not isinstance(block, dict):
            raise InvalidRequest(f"{path}: Input should be a valid dictionary or object to extract fields from")
        if _field(block, "type", f"{path}.") != "text":
            raise InvalidRequest(f"{path}.type: Input should be 'text'")
        read = _block(block, path)
        if not isinstance(read, Text) or not read.text:
            raise InvalidRequest("system: text content blocks must be non-empty")
        texts.append(read.text)
    return "\n".join(texts)


def _tools(value: JSON) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidRequest("tools: Input should be a valid list")
    names: list[str] = []
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise InvalidRequest(f"tools.{index}: Input should be a valid dictionary or object to extract fields from")
        if "cache_control" in tool:
            _cache_control(tool["cache_control"], f"tools.{index}.cache_control")
        if tool.get("type") in (None, "custom"):
            names.append(_custom_tool(tool, f"tools.{index}.custom."))
        elif isinstance(name := tool.get("name"), str):
            names.append(name)
    if len(set(names)) != len(names):
        raise InvalidRequest("tools: Tool names must be unique.")
    return tuple(names)


def _custom_tool(tool: Mapping[str, JSON], path: str) -> str:
    for name in tool:
        if name not in TOOL_FIELDS:
            raise InvalidRequest(f"{path}{name}: Extra inputs are not permitted")
    tool_name = _text(tool, "name", path)
    if not tool_name:
        raise InvalidRequest(f"{path}name: String should have at least 1 character")
    if not _TOOL_NAME.fullmatch(tool_name):
        raise InvalidRequest(f"{path}name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
    if "description" in tool:
        _text(tool, "description", path)
    schema = _field(tool, "input_schema", path)
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path}input_schema: Input should be a valid dictionary")
    if _field(schema, "type", f"{path}input_schema.") != "object":
        raise InvalidRequest(f"{path}input_schema.type: Input should be 'object'")
    _input_schema(schema, f"{path}input_schema")
    return tool_name


def _input_schema(schema: Mapping[str, JSON], path: str) -> None:
    if not {"oneOf", "allOf", "anyOf"}.isdisjoint(schema):
        raise InvalidRequest(f"{path}: input_schema does not support oneOf, allOf, or anyOf at the top level")
    properties = {} if schema.get("properties") is None else schema["properties"]
    if not isinstance(properties, dict) or not all(isinstance(each, dict | bool) for each in properties.values()):
        raise InvalidRequest(f"{path}: JSON schema is invalid. It must match JSON Schema draft 2020-12")
    for name in properties:
        if not _PROPERTY.fullmatch(name):
            raise InvalidRequest(
                f"{path}.properties: Property keys should match pattern '^[a-zA-Z0-9_.-]{{1,64}}$' ({name!r} does not)"
            )
    required = [] if schema.get("required") is None else schema["required"]
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InvalidRequest(f"{path}: JSON schema is invalid. It must match JSON Schema draft 2020-12")


def _tool_choice(value: JSON, names: tuple[str, ...]) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InvalidRequest("tool_choice: Input should be a valid dictionary or object to extract fields from")
    kind = _field(value, "type", "tool_choice.")
    if kind not in ("auto", "any", "tool", "none"):
        raise InvalidRequest(
            f"tool_choice: Input tag {kind!r} found using 'type' does not match any of the expected tags: 'any', "
            "'auto', 'none', 'tool'"
        )
    if not names:
        raise InvalidRequest("tool_choice may only be specified while providing tools.")
    if kind == "tool" and (name := _text(value, "name", "tool_choice.tool.")) not in names:
        raise InvalidRequest(f"Tool '{name}' not found in provided tools")


def _messages(value: JSON) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InvalidRequest("messages: Input should be a valid list")
    if not value:
        raise InvalidRequest("messages: at least one message is required")
    return tuple(_message(message, index) for index, message in enumerate(value))


def _message(message: JSON, index: int) -> Message:
    path = f"messages.{index}"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{path}: Input should be a valid dictionary or object to extract fields from")
    role = _role(_field(message, "role", f"{path}."), index)
    for name in message:
        if name not in ("role", "content"):
            raise InvalidRequest(f"{path}.{name}: Extra inputs are not permitted")
    content = _field(message, "content", f"{path}.")
    if isinstance(content, str):
        return Message(role, (Text(content),) if content else ())
    if not isinstance(content, list):
        raise InvalidRequest(f"{path}.content: Input should be a valid list")
    blocks = tuple(_block(block, f"{path}.content.{at}") for at, block in enumerate(content))
    if role == "system" and not all(isinstance(block, Text) for block in blocks):
        raise InvalidRequest(f"{path}: a system message supports text blocks only")
    return Message(role, blocks)


def _role(value: JSON, index: int) -> Role:
    match value:
        case "user" | "assistant":
            return value
        case "system" if index > 0:
            return "system"
        case "system":
            raise InvalidRequest(
                'messages: Unexpected role "system". The Messages API accepts a top-level `system` parameter, not '
                '"system" as an input message role.'
            )
        case str():
            raise InvalidRequest(
                f'messages: Unexpected role "{value}". Allowed roles are "user" or "assistant". For more information, '
                "see https://docs.claude.com/en/api/messages"
            )
        case _:
            raise InvalidRequest(f"messages.{index}.role: Input should be a valid string")


def _block(block: JSON, path: str) -> Block:
    if not isinstance(block, dict):
        raise InvalidRequest(f"{path}: Input should be a valid dictionary or object to extract fields from")
    kind = _field(block, "type", f"{path}.")
    if not isinstance(kind, str) or kind not in BLOCKS:
        expected = ", ".join(repr(each) for each in BLOCKS)
        raise InvalidRequest(
            f"{path}: Input tag {kind!r} found using 'type' does not match any of the expected tags: {expected}"
        )
    required, optional = BLOCKS[kind]
    for name in required:
        if name not in block:
            raise InvalidRequest(f"{path}.{kind}.{name}: Field required")
    for name in block:
        if name not in required and name not in optional and name != "type":
            raise InvalidRequest(f"{path}.{kind}.{name}: Extra inputs are not permitted")
    if "cache_control" in block:
        _cache_control(block["cache_control"], f"{path}.{kind}.cache_control")
    return _content(block, kind, f"{path}.{kind}.")


def _content(block: Mapping[str, JSON], kind: str, path: str) -> Block:
    match kind:
        case "text":
            return Text(_text(block, "text", path))
        case "thinking":
            return Thinking(_text(block, "thinking", path), _text(block, "signature", path))
        case "redacted_thinking":
            return RedactedThinking(_text(block, "data", path))
        case "tool_use":
            return _tool_use(block, path)
        case "tool_result":
            return _tool_result(block, path)
        case "image" | "document":
            _source(block["source"], path)
            return Opaque(kind)
        case _:
            return Opaque(kind)


def _tool_use(block: Mapping[str, JSON], path: str) -> ToolUse:
    identity = _text(block, "id", path)
    if not _TOOL_USE_ID.fullmatch(identity):
        raise InvalidRequest(f"{path}id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    arguments = block["input"]
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{path}input: Input should be a valid dictionary")
    name = _text(block, "name", path)
    if not 1 <= len(name) <= 200:
        raise InvalidRequest(f"{path}name: String should have between 1 and 200 characters")
    return ToolUse(name, arguments, identity)


def _tool_result(block: Mapping[str, JSON], path: str) -> ToolResult:
    is_error = block.get("is_error", False)
    if not isinstance(is_error, bool):
        raise InvalidRequest(f"{path}is_error: Input should be a valid boolean")
    content = block.get("content", "")
    if isinstance(content, str):
        text, filled = content, bool(content)
    elif isinstance(content, list):
        text, filled = _result_text(content, path, is_error=is_error), bool(content)
    else:
        raise InvalidRequest(f"{path}content: Input should be a valid string or a list of content blocks")
    if is_error and not filled:
        raise InvalidRequest(f"{path[:-1]}: content cannot be empty if `is_error` is true")
    return ToolResult(_text(block, "tool_use_id", path), text, is_error)


def _result_text(content: list[JSON], path: str, *, is_error: bool) -> str:
    texts: list[str] = []
    for index, part in enumerate(content):
        at = f"{path}content.{index}"
        if not isinstance(part, dict):
            raise InvalidRequest(f"{at}: Input should be a valid dictionary or object to extract fields from")
        kind = _field(part, "type", f"{at}.")
        if not isinstance(kind, str) or kind not in _RESULT_BLOCKS:
            expected = ", ".join(repr(each) for each in sorted(_RESULT_BLOCKS))
            raise InvalidRequest(
                f"{at}: Input tag {kind!r} found using 'type' does not match any of the expected tags: {expected}"
            )
        if is_error and kind != "text":
            raise InvalidRequest(f'{path[:-1]}: all content must be type "text" if "is_error" is true')
        if kind not in BLOCKS:
            continue
        read = _block(part, at)
        if isinstance(read, Text):
            if not read.text:
                raise InvalidRequest("messages: text content blocks must be non-empty")
            texts.append(read.text)
    return "\n".join(texts)


def _source(source: JSON, path: str) -> None:
    if not isinstance(source, dict):
        raise InvalidRequest(f"{path}source: Input should be a valid dictionary or object to extract fields from")
    kind = _field(source, "type", f"{path}source.")
    needed = {"base64": ("media_type", "data"), "text": ("media_type", "data"), "url": ("url",), "file": ("file_id",)}
    if not isinstance(kind, str) or kind not in (*needed, "content"):
        raise InvalidRequest(f"{path}source: Input tag {kind!r} found using 'type' does not match any expected tag")
    for name in needed.get(kind, ()):
        if not _text(source, name, f"{path}source.{kind}."):
            raise InvalidRequest(f"{path}source.{kind}.{name}: String should have at least 1 character")
