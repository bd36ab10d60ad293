"""The MCP tools as clients of both eras drive them, over HTTP, on a whole server with real sandboxes."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from galley_server.app import Listen, kitchen
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import Answer, Reply, Stall, call, say
from galley_server.demo.transcript import Request, Text
from galley_server.secret import Secret
from galley_server.settings import ModelSettings, SandboxSettings, Settings
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]
KEY = "galley-test-key-0123456789"
NAMES = {
    "list_agents",
    "create_agent",
    "list_environments",
    "create_environment",
    "list_vaults",
    "create_session",
    "send_message",
    "read_events",
    "list_sessions",
    "get_session",
    "confirm_tool",
    "interrupt_session",
    "archive_session",
    "upload_file",
    "download_file",
}


def scripted(request: Request) -> Answer:
    """What the model says: a phrase of the user asks for each behaviour."""
    if request.steps:
        return say(f"The tool said: {request.steps[-1][1].text}")
    if "run: " in request.asked:
        return call("bash", command=request.asked.partition("run: ")[2])
    if "take for ever" in request.asked:
        return Reply((Text("Well..."),), fault=Stall("text"))
    return say(f"You said: {request.asked}")


class Caller:
    """A client, and what its calls gave."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, tool: str, **arguments: object) -> dict[str, Any]:
        result = await self._call(tool, arguments)
        assert not result.is_error, result.content
        structured = result.structured_content
        assert isinstance(structured, dict)
        return structured

    async def fails(self, tool: str, **arguments: object) -> str:
        result = await self._call(tool, arguments)
        assert result.is_error
        (text,) = result.content
        assert isinstance(text, TextContent)
        return text.text

    async def _call(self, tool: str, arguments: dict[str, object]) -> CallToolResult:
        async with asyncio.timeout(60):
            return await self.client.call_tool(tool, arguments)

    async def until_idle(self, session_id: str, after: str | None = None) -> list[dict[str, Any]]:
        """Follow a session as the tools say it is done."""
        events: list[dict[str, Any]] = []
        while True:
            found = await self("read_events", session_id=session_id, after=after, wait_s=30)
            events += found["events"]
            after = found["next_after"]
            if found["status"] == "idle" and not found["has_more"]:
                return events


@asynccontextmanager
async def calling(tmp_path: Path, mode: Literal["auto", "legacy"] = "auto") -> AsyncIterator[Caller]:
    async with serve_scripted(scripted) as url:
        settings = Settings(
            home=tmp_path / "home",
            api_key=Secret(KEY),
            model=ModelSettings(api_key=Secret("k"), base_url=url, default="scripted-1"),
            sandbox=SandboxSettings(choice="bubblewrap", memory_mb=256, disk_mb=64),
        )
        headers = {"authorization": f"Bearer {KEY}"}
        async with (
            kitchen(settings, Listen("127.0.0.1", 0)) as galley,
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(f"{galley.address.url}/mcp", http_client=http), mode=mode) as client,
        ):
            yield Caller(client)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    async with calling(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_session_runs_from_nothing_to_an_answer_in_both_eras(
    tmp_path: Path, mode: Literal["auto", "legacy"]
) -> None:
    async with calling(tmp_path, mode) as caller:
        session_id = (await caller("create_session"))["session_id"]
        sent = await caller("send_message", session_id=session_id, text="run: echo $((6*7))")
        events = await caller.until_idle(session_id, sent["next_after"])
        assert [event["type"] for event in events][-3:] == ["agent.tool_result", "agent.message", "session.status_idle"]
        assert events[-2]["text"] == "The tool said: 42"


async def test_every_tool_says_what_it_takes_what_it_gives_and_what_it_does(caller: Caller) -> None:
    tools = {tool.name: tool for tool in (await caller.client.list_tools()).tools}
    assert set(tools) == NAMES
    for tool in tools.values():
        assert tool.description
        assert tool.output_schema is not None
        assert tool.input_schema["additionalProperties"] is False
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is not None


async def test_create_session_takes_a_message_and_files(caller: Caller) -> None:
    file = await caller("upload_file", filename="menu.txt", content="soup\n")
    made = await caller("create_session", message="run: cat /mnt/session/uploads/menu.txt", file_ids=[file["id"]])
    events = await caller.until_idle(made["session_id"], made["next_after"])
    assert "soup" in events[-2]["text"]


async def test_send_message_can_wait_for_the_first_events(caller: Caller) -> None:
    session_id = (await caller("create_session"))["session_id"]
    sent = await caller("send_message", session_id=session_id, text="hello", wait_s=30)
    rest = await caller.until_idle(session_id, sent["next_after"])
    assert [event["type"] for event in [*sent["events"], *rest]].count("agent.message") == 1


async def test_a_repeated_call_with_its_key_has_no_second_effect(caller: Caller) -> None:
    first = await caller("create_session", title="soup", idempotency_key="k1")
    again = await caller("create_session", title="soup", idempotency_key="k1")
    assert again["session_id"] == first["session_id"]
    sent = await caller("send_message", session_id=first["session_id"], text="hi", idempotency_key="m1")
    resent = await caller("send_message", session_id=first["session_id"], text="hi", idempotency_key="m1")
    assert resent["event_id"] == sent["event_id"]
    await caller.until_idle(first["session_id"])
    page = await caller("read_events", session_id=first["session_id"], types=["user.message"])
    assert len(page["events"]) == 1


async def test_a_key_is_good_for_one_request_only(caller: Caller) -> None:
    await caller("create_session", title="soup", idempotency_key="k1")
    assert "idempotency" in await caller.fails("create_session", title="stew", idempotency_key="k1")


async def test_an_asked_call_is_shown_as_pending_and_runs_when_confirmed(caller: Caller) -> None:
    agent = await caller("create_agent", name="careful", asks_before=["bash"])
    assert agent["asks_before"] == ["bash"]
    made = await caller("create_session", agent_id=agent["id"], message="run: echo done")
    events = await caller.until_idle(made["session_id"], made["next_after"])
    assert events[-1]["stop_reason"] == "requires_action"
    shown = await caller("get_session", session_id=made["session_id"])
    (pending,) = shown["pending"]
    assert pending["input"] == {"command": "echo done"}
    told = await caller(
        "confirm_tool", session_id=made["session_id"], tool_use_id=pending["tool_use_id"], decision="allow"
    )
    events = await caller.until_idle(made["session_id"], told["next_after"])
    assert events[-2]["text"] == "The tool said: done"


async def test_a_denied_call_does_not_run_and_the_agent_is_told_why(caller: Caller) -> None:
    agent = await caller("create_agent", name="careful", asks_before=["bash"])
    made = await caller("create_session", agent_id=agent["id"], message="run: touch /workspace/x")
    asked = (await caller.until_idle(made["session_id"]))[-1]["waiting_for"][0]
    told = await caller(
        "confirm_tool", session_id=made["session_id"], tool_use_id=asked, decision="deny", reason="not today"
    )
    events = await caller.until_idle(made["session_id"], told["next_after"])
    assert "not today" in events[-2]["text"]


async def test_an_interrupt_makes_a_busy_session_idle(caller: Caller) -> None:
    made = await caller("create_session", message="take for ever")
    await caller("interrupt_session", session_id=made["session_id"])
    events = await caller.until_idle(made["session_id"])
    assert events[-1]["stop_reason"] == "end_turn"


async def test_an_archived_session_takes_no_more_messages_and_stays_readable(caller: Caller) -> None:
    session_id = (await caller("create_session", message="hello"))["session_id"]
    await caller.until_idle(session_id)
    assert (await caller("archive_session", session_id=session_id))["archived"] is True
    assert "archived" in await caller.fails("send_message", session_id=session_id, text="more")
    assert (await caller("read_events", session_id=session_id))["status"] == "terminated"
    assert (await caller("list_sessions"))["sessions"] == []
    assert len((await caller("list_sessions", include_archived=True))["sessions"]) == 1


async def test_the_full_view_shows_official_events(caller: Caller) -> None:
    session_id = (await caller("create_session", message="hello"))["session_id"]
    await caller.until_idle(session_id)
    found = await caller("read_events", session_id=session_id, view="full", types=["span.model_request_end"])
    (end,) = found["events"]
    assert end["model_usage"]["output_tokens"] > 0


async def test_long_output_is_cut_in_the_compact_view_and_says_so(caller: Caller) -> None:
    made = await caller("create_session", message="run: seq 20000")
    await caller.until_idle(made["session_id"])
    found = await caller("read_events", session_id=made["session_id"], types=["agent.tool_result"])
    (result,) = found["events"]
    assert result["cut"] is True
    assert len(result["text"]) < 5_000
    assert "characters left out" in result["text"]


async def test_a_long_history_comes_in_bounded_pieces_without_gap_or_duplicate(caller: Caller) -> None:
    session_id = (await caller("create_session"))["session_id"]
    for number in range(12):
        await caller("send_message", session_id=session_id, text=f"{number} " + "x" * 3_500)
    await caller.until_idle(session_id)
    seen: list[str] = []
    after, more = None, True
    while more:
        found = await caller("read_events", session_id=session_id, after=after, types=["user.message"])
        assert len(str(found)) < 50_000
        seen += [event["text"].split()[0] for event in found["events"] if not event.get("queued")]
        after, more = found["next_after"], found["has_more"]
    assert seen == [str(number) for number in range(12)]


async def test_what_an_agent_puts_into_outputs_can_be_downloaded(caller: Caller) -> None:
    command = "mkdir -p /mnt/session/outputs/a && echo soup > /mnt/session/outputs/a/menu.txt"
    made = await caller("create_session", message=f"run: {command}")
    await caller.until_idle(made["session_id"])
    files: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while not files:  # outputs appear shortly after the turn, as in the official API
            files = (await caller("get_session", session_id=made["session_id"])).get("files", [])
    (file,) = files
    assert file["filename"] == "a_menu.txt"
    assert (await caller("download_file", file_id=file["id"]))["text"] == "soup\n"


@pytest.mark.parametrize("data", [b"soup\n", "Käse".encode(), bytes(range(256)), b""], ids=str)
async def test_a_file_comes_back_as_it_went_in(caller: Caller, data: bytes) -> None:
    content = base64.b64encode(data).decode()
    file = await caller("upload_file", filename="x.bin", content=content, encoding="base64")
    back = await caller("download_file", file_id=file["id"])
    assert (back.get("text", "").encode() or base64.b64decode(back.get("base64", ""))) == data
    assert "next_offset" not in back


async def test_a_large_file_comes_in_pieces_that_cut_no_character(caller: Caller) -> None:
    text = "aä€😀" * 60_000
    content = base64.b64encode(text.encode()).decode()
    file = await caller("upload_file", filename="long.txt", content=content, encoding="base64")
    pieces, offset = [], 0
    while True:
        back = await caller("download_file", file_id=file["id"], offset=offset)
        pieces.append(back["text"])
        if "next_offset" not in back:
            break
        offset = back["next_offset"]
    assert len(pieces) > 2
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("read_events", {"session_id": "sesn_nope"}, "sesn_nope"),
        ("read_events", {"session_id": "sesn_nope", "wait_s": 99}, "wait_s"),
        ("send_message", {"session_id": "sesn_nope", "text": ""}, "text"),
        ("create_session", {"agent": "agent_1"}, "agent: Extra inputs are not permitted"),
        ("create_session", {"agent_id": "agent_nope"}, "agent_nope"),
        ("create_session", {"file_ids": ["file_nope"]}, "file_ids.0"),
        ("create_agent", {"name": "x", "asks_before": ["bash"], "tools": ["read"]}, "bash is not among"),
        ("create_agent", {"name": ""}, "name"),
        ("upload_file", {"filename": "x", "content": "!", "encoding": "base64"}, "base64"),
        ("download_file", {"file_id": "file_nope"}, "file_nope"),
        ("confirm_tool", {"session_id": "sesn_nope", "tool_use_id": "x", "decision": "maybe"}, "decision"),
    ],
)
async def test_an_error_names_what_is_wrong(
    caller: Caller, tool: str, arguments: dict[str, object], words: str
) -> None:
    text = await caller.fails(tool, **arguments)
    assert text.startswith(f"{tool}: ")
    assert words in text
    assert "pydantic" not in text


async def test_a_cursor_of_another_session_is_refused(caller: Caller) -> None:
    session_id = (await caller("create_session"))["session_id"]
    text = await caller.fails("read_events", session_id=session_id, after="sevt_nope")
    assert text.startswith("read_events: after: 'sevt_nope' is neither")
