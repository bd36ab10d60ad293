"""A model that does as it is told: `CALL tool {...}` in a prompt makes it call the tool and say what comes back.

It speaks as much of the Messages API as agents need to have one tool call made.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send


@dataclass
class Model:
    """`tools`: what it was offered last, by name. `results`: what became of its calls."""

    tools: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method != "POST" or not request.url.path.endswith("/messages"):
            await JSONResponse({}, 200 if request.method in ("GET", "HEAD") else 404)(scope, receive, send)
            return
        asked = await request.json()
        await self._answer(asked)(scope, receive, send)

    def _answer(self, asked: dict[str, Any]) -> Response:
        if asked.get("tools"):
            self.tools = [tool["name"] for tool in asked["tools"]]
        blocks = [
            block for message in asked["messages"] for block in _blocks(message["content"]) if message["role"] == "user"
        ]
        results = [_text(block.get("content", "")) for block in blocks if block["type"] == "tool_result"]
        if results:
            self.results = results
            return _stream(asked, {"type": "text", "text": f"SAID {results[-1][:500]}"})
        called = [_called(block["text"]) for block in blocks if block["type"] == "text" and "CALL " in block["text"]]
        if not called or not asked.get("tools"):
            return _stream(asked, {"type": "text", "text": "nothing to do"})
        name, arguments = called[-1]
        return _stream(asked, {"type": "tool_use", "id": "toolu_01", "name": name, "input": arguments})


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)


def _called(text: str) -> tuple[str, Any]:
    name, _, arguments = text.partition("CALL ")[2].partition(" ")
    return name, json.JSONDecoder().raw_decode(arguments)[0]


def _stream(asked: dict[str, Any], block: dict[str, Any]) -> Response:
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "msg_01", "type": "message", "role": "assistant", "model": asked.get("model"), "usage": usage}
    calls = block["type"] == "tool_use"
    stop = "tool_use" if calls else "end_turn"
    if not asked.get("stream"):
        return JSONResponse({**message, "content": [block], "stop_reason": stop, "stop_sequence": None})
    begun = {**block, "input": {}} if calls else {**block, "text": ""}
    delta = (
        {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        if calls
        else {"type": "text_delta", "text": block["text"]}
    )
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "stop_sequence": None}},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]

    async def sent() -> AsyncIterator[str]:
        for event in events:
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"

    return StreamingResponse(sent(), media_type="text/event-stream")
