"""A server that echoes its credential hands it to nobody, whatever it wraps it in."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from galley_vault_proxy.mcp_door.pins import PinPlace
from starlette.responses import Response

from tests.integration.mcp_door_client import through
from tests.integration.mcp_door_kit import CANARY, everything, open_door
from tests.integration.mcp_door_upstream import Received, Upstream, events, reply, scripted

pytestmark = pytest.mark.anyio

SPELLINGS: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "json in json": lambda text: json.dumps(json.dumps({"authorization": text})),
    "percent": lambda text: quote(text, safe=""),
    "hex": lambda text: text.encode().hex(),
    "basic": lambda text: base64.b64encode(f"user:{text}".encode()).decode(),
    "basic of two": lambda text: base64.b64encode(f"ab{text}".encode()).decode(),
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
}


def leaked(text: str) -> bool:
    return any(spell(CANARY).strip('"=') in text for spell in SPELLINGS.values())


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("place", ["result", "error", "stream", "split", "notification"])
async def test_the_credential_does_not_come_back(tmp_path: Path, place: str, spelling: str) -> None:
    said = SPELLINGS[spelling](CANARY)

    async def answer(got: Received) -> Response | None:
        if got.method != "tools/call":
            return None
        result = {
            "content": [{"type": "text", "text": said}],
            "structuredContent": {"result": said},
            "_meta": {"x": said},
        }
        if place == "result":
            return reply(got.message, result)
        if place == "error":
            return reply(got.message, error={"code": -32603, "message": said, "data": {"sent": said}}, status=400)
        whole = {"jsonrpc": "2.0", "id": got.message["id"], "result": result}
        if place == "notification":
            whole = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": said}}
        data = b"id: " + said.encode() + b"\ndata: " + json.dumps(whole).encode() + b"\n\n"
        size = 3 if place == "split" else len(data)
        return events(*(data[i : i + size] for i in range(0, len(data), size)))

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            got = await client.call("echo", {"text": "x"})

    assert "[redacted]" in got.text
    assert not leaked(got.text)
    data = got.text.partition("data: ")[2] or got.text
    assert json.loads(data)


async def test_a_credential_in_a_header_or_outside_a_string_is_not_passed_on_at_all(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.method == "initialize":
            return reply(got.message, {}, headers={"mcp-session-id": f"s-{CANARY}"})
        if got.method == "ping":
            body = b'{"jsonrpc":"2.0","id":%d,"result":{"n":123456789012}}' % got.message["id"]
            return Response(body, media_type="application/json")
        return None

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            header = await client.initialize()
            door.credentials.rotate(up.url, "123456789012")
            number = await client.send(client.message("ping"))

    assert header.status_code == number.status_code == 502
    assert CANARY not in str(header.headers) + header.text
    assert "123456789012" not in number.text


async def test_what_was_rotated_a_moment_ago_is_taken_out_too(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        return (
            reply(got.message, {"content": [{"type": "text", "text": CANARY}]}) if got.method == "tools/call" else None
        )

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            await client.call("echo", {"text": "x"})
            door.credentials.rotate(up.url, "a-new-token-value")
            got = await client.call("echo", {"text": "x"})

    assert up.calls()[1].headers["authorization"] == "Bearer a-new-token-value"
    assert CANARY not in got.text


async def test_a_compressed_answer_is_refused_for_it_cannot_be_read(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.method != "ping":
            return None
        return Response(b"\x1f\x8b", media_type="application/json", headers={"content-encoding": "gzip"})

    async with scripted(answer) as up, open_door(tmp_path) as door, through(door, up) as client:
        got = await client.send(client.message("ping"))

    assert got.status_code == 502


@pytest.mark.parametrize("modern", [False, True])
async def test_a_real_server_that_shows_its_headers_shows_nothing(tmp_path: Path, modern: bool) -> None:
    async with everything("http") as url, open_door(tmp_path) as door:
        door.credentials.tokens[url] = CANARY
        async with through(door, Upstream(url), modern=modern) as client:
            if not modern:
                await client.initialize()
                await client.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            got = await client.call("whoami")

    assert "[redacted]" in got.text
    assert not leaked(got.text)
    assert client.token not in got.text


@pytest.mark.parametrize("listed", [False, True])
async def test_a_definition_with_the_credential_in_it_is_kept_without(tmp_path: Path, listed: bool) -> None:
    """Listed by the client or by the door itself: what is pinned lies in a file, and is shown to whoever runs this."""
    async with scripted() as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        up.tools[0]["description"] = f"Says what it is told. Calls the API with {CANARY}"
        async with through(door, up) as client:
            shown = await client.send(client.message("tools/list")) if listed else None
            called = await client.call("echo", {"text": "x"})
        kept = (await door.pins.load(PinPlace(up.url, door.credentials.id_of(up.url))))["echo"]

    assert kept.value["description"] == "Says what it is told. Calls the API with [redacted]"
    assert called.json()["result"]["content"][0]["text"] == "x"
    assert shown is None or CANARY not in shown.text


async def test_an_answer_over_the_bridge_with_the_credential_outside_a_string_is_told_as_an_error(
    tmp_path: Path,
) -> None:
    async def answer(got: Received) -> Response | None:
        if got.headers.get("mcp-protocol-version") == "2026-07-28":
            return reply({"id": None}, error={"code": -32000, "message": "unsupported"}, status=400)
        if got.method != "tools/call":
            return None
        progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": None}}
        body = b'{"jsonrpc":"2.0","id":%d,"result":{"n":123456789012}}' % got.message["id"]
        progress["params"] = {"progressToken": got.message["params"]["_meta"]["progressToken"], "progress": 1}
        return events(b"data: " + json.dumps(progress).encode() + b"\n\ndata: " + body + b"\n\n")

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = "123456789012"
        async with through(door, up, modern=True) as client:
            params = {"name": "echo", "arguments": {"text": "x"}, "_meta": {"progressToken": "p"}}
            got = await client.send(client.message("tools/call", params))

    assert '"progress":1' in got.text
    assert '"code":-32603' in got.text
    assert "123456789012" not in got.text
