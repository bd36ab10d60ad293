"""What an MCP server answered, as a tool's outcome. Pure: foreign input, checked and bounded here."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from galley_sandbox.port import Block, MediaBlock, TextBlock, ToolResult
from mcp.shared.inbound import find_invalid_x_mcp_header

from galley_server.hands.port import ToolOutcome
from galley_server.hands.results import from_sandbox
from galley_server.log.internal import McpTool

MAX_NAME: Final = 256
MAX_DESCRIPTION: Final = 16_384
MAX_SCHEMA: Final = 256 * 1024


def outcome_of(result: Mapping[str, Any]) -> ToolOutcome:
    """From the result of `tools/call`. Its bounds are those of every tool's output."""
    blocks = tuple(_blocks(result))
    return from_sandbox(ToolResult(blocks, is_error=result.get("isError") is True))


def tools_of(listed: object) -> list[McpTool]:
    """The tools of one page of `tools/list`. What is not a tool is passed over."""
    found: list[McpTool] = []
    for entry in listed if isinstance(listed, list) else ():
        if not isinstance(entry, dict):
            continue
        name, schema, description = entry.get("name"), entry.get("inputSchema"), entry.get("description")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not isinstance(schema, dict):
            continue
        # The revision has clients drop a tool whose marks for headers contradict each other.
        if len(json.dumps(schema)) > MAX_SCHEMA or find_invalid_x_mcp_header(schema) is not None:
            continue
        said = description[:MAX_DESCRIPTION] if isinstance(description, str) and description.strip() else None
        found.append(McpTool(name=name, description=said, input_schema=schema))
    return found


def _blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    content = result.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    for block in blocks:
        yield _block(block)
    structured = result.get("structuredContent")
    # Servers repeat what is structured as text, for clients that read only that.
    if structured is not None and not any(block.get("type") == "text" for block in blocks):
        yield TextBlock(json.dumps(structured, ensure_ascii=False))


def _block(block: Mapping[str, Any]) -> Block:
    match block:
        case {"type": "text", "text": str(text)}:
            return TextBlock(text)
        case {"type": "image", "data": str(data), "mimeType": str(kind)}:
            return MediaBlock("image", kind, data)
        case {"type": "resource", "resource": {"text": str(text), "uri": str(uri)}}:
            return TextBlock(f"[{uri}]\n{text}")
        case {"type": "resource", "resource": {"blob": str(data), "mimeType": str(kind)}}:
            return MediaBlock("image" if kind.startswith("image/") else "document", kind, data)
        case {"type": "resource_link", "uri": str(uri)}:
            return TextBlock(f"[{block.get('title') or block.get('name') or 'resource'}: {uri}]")
        case _:
            return TextBlock(f"[left out: content of the type {str(block.get('type'))[:40]!r}]")
