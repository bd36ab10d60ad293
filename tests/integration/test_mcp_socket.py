"""The Unix socket: both eras on one pipe, mistakes answered, connections counted."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from galley_server.errors import ConfigError
from galley_server.home import socket_to_bind
from galley_server.mcp.lines import MAX_CLIENT_LINE
from galley_server.mcp.server import SHUTTING_DOWN
from galley_server.mcp.socket import MAX_CLIENTS, SocketEndpoint
from mcp.client import Client
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from tests.integration.mcp_server_program import tool_server

pytestmark = pytest.mark.anyio

ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
}
INITIALIZE: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "0"},
}


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[SocketEndpoint]:
    async with asyncio.timeout(20), SocketEndpoint.open(tool_server(home), socket_to_bind(home)) as endpoint:
        yield endpoint


class Wire:
    """A client that speaks bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | dict[str, Any]) -> None:
        self.writer.write(data if isinstance(data, bytes) else json.dumps({"jsonrpc": "2.0", **data}).encode() + b"\n")
        await self.writer.drain()

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.reader.readuntil(b"\n"))
        return message

    async def ask(self, data: bytes | dict[str, Any]) -> dict[str, Any]:
        await self.send(data)
        return await self.receive()

    async def ended(self) -> bool:
        return await self.reader.read() == b""


@asynccontextmanager
async def wired(home: Path) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_unix_connection(socket_to_bind(home), limit=64 * 1024 * 1024)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def call(id_: int | str, name: str, *, modern: bool = True, **arguments: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    return {"id": id_, "method": "tools/call", "params": params | ({"_meta": ENVELOPE} if modern else {})}


async def test_a_client_may_discover_and_then_initialize_on_the_same_pipe(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        discovered = await wire.ask({"id": 1, "method": "server/discover", "params": {"_meta": ENVELOPE}})
        initialized = await wire.ask({"id": 2, "method": "initialize", "params": INITIALIZE})
        await wire.send({"method": "notifications/initialized"})
        called = await wire.ask(call(3, "echo", modern=False, text="hi"))
    assert "2026-07-28" in discovered["result"]["supportedVersions"]
    assert initialized["result"]["protocolVersion"] == "2025-11-25"
    assert called["result"]["structuredContent"] == {"result": "hi"}


async def test_an_initialised_client_may_still_speak_the_modern_era(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        await wire.ask({"id": 1, "method": "initialize", "params": INITIALIZE})
        called = await wire.ask(call(2, "echo", text="hi"))
    assert called["result"]["resultType"] == "complete"


async def test_an_unsupported_version_is_told_which_ones_there_are(tmp_path: Path) -> None:
    envelope = ENVELOPE | {"io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    async with serving(tmp_path), wired(tmp_path) as wire:
        answer = await wire.ask({"id": 1, "method": "tools/list", "params": {"_meta": envelope}})
    assert answer["error"]["code"] == -32022
    assert "2026-07-28" in answer["error"]["data"]["supported"]


@pytest.mark.parametrize(
    ("data", "code", "id_"),
    [
        (b"{nonsense\n", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}\n', -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}\n', -32700, None),
        (b"[" * 5000 + b"\n", -32700, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n', -32600, None),
        (b'{"id":4,"method":"ping"}\n', -32600, 4),
        (b'{"jsonrpc":"2.0","id":5,"method":"m","params":"' + b"x" * MAX_CLIENT_LINE + b'"}\n', -32600, 5),
    ],
)
async def test_a_mistake_is_answered_and_the_pipe_goes_on(
    tmp_path: Path, data: bytes, code: int, id_: int | None
) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        answer = await wire.ask(data)
        after = await wire.ask(call(9, "echo", text="still here"))
    assert (answer["error"]["code"], answer["id"]) == (code, id_)
    assert "pydantic" not in json.dumps(answer)
    assert after["result"]["structuredContent"] == {"result": "still here"}


async def test_an_unforeseen_error_shows_nothing_of_itself(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        answer = await wire.ask(call(1, "crash"))
    assert answer["result"]["isError"]
    assert "secret detail" not in json.dumps(answer)


async def test_an_answer_over_the_limit_is_an_error_that_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        answer = await wire.ask(call(1, "repeat", text="x" * 1024, times=16 * 1024))
    assert answer["id"] == 1
    assert "Ask for less" in answer["error"]["message"]


async def test_an_answer_that_is_no_unicode_is_an_error_not_silence(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        answer = await wire.ask(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\\ud800"}}\n')
    assert answer["error"]["code"] == -32700


async def test_a_client_that_does_not_read_holds_up_only_itself(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as deaf, wired(tmp_path) as wire:
        for number in range(100):
            await deaf.send(call(number, "repeat", text="x" * 1024, times=256))
        answer = await wire.ask(call(1, "echo", text="hi"))
    assert answer["result"]["structuredContent"] == {"result": "hi"}


async def test_a_cancelled_call_stops_and_is_not_answered(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        await wire.send(call(1, "count"))
        await wire.ask(call(2, "echo", text="count has started"))
        await wire.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
        answer = await wire.ask(call(3, "echo", text="after"))
    assert answer["id"] == 3
    assert (tmp_path / "cancelled").exists()


@pytest.mark.parametrize("id_", [[], {}, None, 99, 1.5])
async def test_a_cancellation_of_nothing_does_no_harm(tmp_path: Path, id_: Any) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        await wire.send({"method": "notifications/cancelled", "params": {"requestId": id_}})
        assert "result" in await wire.ask(call(1, "echo", text="hi"))


async def test_a_client_that_hangs_up_cancels_what_it_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as endpoint:
        async with wired(tmp_path) as wire:
            await wire.send(call(1, "count"))
            await wire.ask(call(2, "echo", text="count has started"))
        await endpoint.idle.wait()
    assert (tmp_path / "cancelled").exists()


async def test_clients_are_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as endpoint:
        assert endpoint.idle.is_set()
        async with wired(tmp_path) as one, wired(tmp_path) as two:
            await one.ask(call(1, "echo", text="here"))
            await two.ask(call(1, "echo", text="here"))
            assert (endpoint.clients, endpoint.idle.is_set(), endpoint.retire()) == (2, False, False)
        await endpoint.idle.wait()
        assert endpoint.clients == 0


async def test_a_retired_endpoint_leaves_no_socket_behind(tmp_path: Path) -> None:
    async with serving(tmp_path) as endpoint:
        assert endpoint.retire()
        assert not socket_to_bind(tmp_path).exists()


async def test_too_many_clients_are_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path), AsyncExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            wire = await stack.enter_async_context(wired(tmp_path))
            await wire.ask({"id": 1, "method": "ping"})
        late = await stack.enter_async_context(wired(tmp_path))
        refusal = await late.receive()
        assert await late.ended()
    assert "close one and try again" in refusal["error"]["message"]


async def test_a_shutdown_answers_what_is_under_way_and_hangs_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as endpoint, wired(tmp_path) as wire:
        await wire.send(call(1, "count"))
        await wire.ask(call(2, "echo", text="count has started"))
        await endpoint.close()
        answer = await wire.receive()
        assert await wire.ended()
    assert (answer["id"], answer["error"]["message"]) == (1, SHUTTING_DOWN)


async def test_a_shutdown_hangs_up_on_a_listen_stream_without_a_word(tmp_path: Path) -> None:
    async with serving(tmp_path) as endpoint, wired(tmp_path) as wire:
        params = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
        acknowledged = await wire.ask({"id": "l", "method": "subscriptions/listen", "params": params})
        before = asyncio.get_running_loop().time()
        await endpoint.close()
        assert asyncio.get_running_loop().time() - before < 1
        assert await wire.ended()
    assert acknowledged["method"] == "notifications/subscriptions/acknowledged"


async def test_legacy_list_changes_are_announced_and_delivered(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire, wired(tmp_path) as other:
        initialized = await wire.ask({"id": 1, "method": "initialize", "params": INITIALIZE})
        await wire.send({"method": "notifications/initialized"})
        await wire.ask(call(2, "echo", modern=False, text="initialized was read"))
        await other.ask(call(1, "announce"))
        changed = await wire.receive()
    assert initialized["result"]["capabilities"]["tools"]["listChanged"]
    assert changed["method"] == "notifications/tools/list_changed"


async def test_the_socket_is_ours_alone(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert stat.S_IMODE(socket_to_bind(tmp_path).stat().st_mode) == 0o600


async def test_a_socket_left_by_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = socket_to_bind(tmp_path)
    listener = await asyncio.start_unix_server(lambda reader, writer: None, path)
    os.link(path, tmp_path / "kept")
    listener.close()
    if not path.exists():  # newer Pythons remove it when the listener closes; a kill does not
        os.link(tmp_path / "kept", path)
    async with serving(tmp_path), wired(tmp_path) as wire:
        assert (await wire.ask(call(1, "echo", text="hi")))["id"] == 1


async def test_a_server_that_answers_keeps_its_socket(tmp_path: Path) -> None:
    async with serving(tmp_path), wired(tmp_path) as wire:
        with pytest.raises(ConfigError, match="Another Galley server answers"):
            async with SocketEndpoint.open(tool_server(tmp_path), socket_to_bind(tmp_path)):
                pass
        assert (await wire.ask(call(1, "echo", text="hi")))["id"] == 1


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_sdks_client_works_in_every_mode(tmp_path: Path, mode: str) -> None:
    async with serving(tmp_path), Client(over_socket(tmp_path), mode=mode) as client:
        tools = await client.list_tools()
        result = await client.call_tool("echo", {"text": "hi"})
    assert "echo" in {tool.name for tool in tools.tools}
    assert result.structured_content == {"result": "hi"}


@asynccontextmanager
async def over_socket(home: Path) -> AsyncIterator[Any]:
    """A client transport over the socket, as the SDK wants one."""
    inbox_send, inbox = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outbox, outbox_receive = anyio.create_memory_object_stream[SessionMessage](0)
    async with wired(home) as wire, asyncio.TaskGroup() as tasks, inbox_send, inbox, outbox, outbox_receive:

        async def read() -> None:
            while True:
                line = await wire.reader.readuntil(b"\n")
                await inbox_send.send(SessionMessage(jsonrpc_message_adapter.validate_json(line)))

        async def write() -> None:
            async for item in outbox_receive:
                await wire.send(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")

        running = [tasks.create_task(read()), tasks.create_task(write())]
        try:
            yield inbox, outbox
        finally:
            for task in running:
                task.cancel()
