"""The next model request, from rows alone."""

import json
from datetime import UTC, datetime

from galley_server.brain.drafts import event_draft, internal_draft
from galley_server.brain.prompt import attached_files, build_request
from galley_server.hands.tools import offered
from galley_server.log import internal
from galley_server.log.row import Row
from galley_server.log.state import SessionState, fold
from galley_server.wire import events as ev
from galley_server.wire.agent import AgentToolset, AlwaysAllow, Effort, ModelConfig, SessionAgent, ToolDefault
from galley_server.wire.base import JSON
from galley_server.wire.content import Base64Source, FileSource, ImageBlock, TextBlock, UserBlock
from galley_server.wire.environment import Limited, Networking, Unrestricted
from galley_server.wire.resource import FileResource

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AGENT = SessionAgent(
    id="agent_1",
    version=1,
    name="cook",
    description=None,
    model=ModelConfig(id="claude-opus-5-5", effort=Effort(type="high")),
    system="You cook.",
    tools=(AgentToolset(default_config=ToolDefault(enabled=True, permission_policy=AlwaysAllow()), configs=()),),
    mcp_servers=(),
)


def folded(*contents: ev.AnyEvent | internal.Internal, resources: tuple[FileResource, ...] = ()) -> SessionState:
    created = internal.SessionCreated(agent=AGENT, environment_id="env_1", thread_id="sthr_1", resources=resources)
    drafts = [
        event_draft(content) if isinstance(content, ev.Event) else internal_draft(content)
        for content in (created, *contents)
    ]
    return fold(Row(seq, draft.id, draft.type, draft.body, NOW) for seq, draft in enumerate(drafts, start=1))


def message(event_id: str, *blocks: UserBlock) -> tuple[ev.UserMessage, internal.Processed]:
    return ev.UserMessage(id=event_id, content=blocks), internal.Processed(event_id=event_id)


def said(*blocks: dict[str, JSON], calls: dict[str, str] | None = None) -> internal.Assistant:
    return internal.Assistant(request_id="sevt_r", blocks=blocks, calls=calls or {}, stop_reason="end_turn")


def messages_of(state: SessionState) -> list[dict[str, JSON]]:
    return [dict(part) for part in build_request(state, AGENT, offered(AGENT), {}).messages]


def texts_of(part: dict[str, JSON]) -> list[JSON]:
    content = part["content"]
    assert isinstance(content, list)
    return [block.get("text") for block in content if isinstance(block, dict)]


def test_messages_in_a_row_become_one() -> None:
    state = folded(*message("sevt_1", TextBlock(text="one")), *message("sevt_2", TextBlock(text="two")))
    (only,) = messages_of(state)
    assert texts_of(only) == ["one", "two"]


def test_results_come_first_and_in_block_order() -> None:
    state = folded(
        *message("sevt_1", TextBlock(text="go")),
        said(
            {"type": "tool_use", "id": "toolu_a", "name": "read", "input": {}},
            {"type": "tool_use", "id": "toolu_b", "name": "glob", "input": {}},
            calls={"toolu_a": "sevt_a", "toolu_b": "sevt_b"},
        ),
        ev.AgentToolUse(id="sevt_a", name="read", input={}),
        ev.AgentToolUse(id="sevt_b", name="glob", input={}),
        ev.AgentToolResult(id="sevt_rb", tool_use_id="sevt_b", content=(TextBlock(text="b"),)),
        ev.AgentToolResult(id="sevt_ra", tool_use_id="sevt_a", content=(TextBlock(text=""),), is_error=True),
        *message("sevt_2", TextBlock(text="and?")),
    )
    content = messages_of(state)[2]["content"]
    assert isinstance(content, list)
    ids = [part.get("tool_use_id") for part in content if isinstance(part, dict)]
    assert ids == ["toolu_a", "toolu_b", None]
    # An error without text would be refused by the API.
    assert content[0] == {
        "type": "tool_result",
        "tool_use_id": "toolu_a",
        "is_error": True,
        "content": [{"type": "text", "text": "(no output)"}],
    }


def test_blank_text_never_reaches_the_api() -> None:
    state = folded(
        *message("sevt_1", TextBlock(text="  ")),
        said({"type": "text", "text": "\n"}),
        *message("sevt_2", TextBlock(text="hi")),
    )
    (only,) = messages_of(state)
    assert texts_of(only) == ["(an empty message)", "hi"]


def test_the_last_two_user_messages_and_the_system_prompt_are_cache_breakpoints() -> None:
    state = folded(
        *message("sevt_1", TextBlock(text="one")),
        said({"type": "text", "text": "1"}),
        *message("sevt_2", TextBlock(text="two")),
        said({"type": "text", "text": "2"}),
        *message("sevt_3", TextBlock(text="three")),
    )
    body = build_request(state, AGENT, offered(AGENT), {}).body()
    assert str(body["messages"]).count("cache_control") == 2
    assert str(body["system"]).count("cache_control") == 1
    assert "cache_control" not in str(body["tools"])


def test_mounted_files_are_named_to_the_model() -> None:
    resource = FileResource(
        id="sesrsc_1", file_id="file_1", mount_path="/mnt/session/uploads/a.csv", created_at=NOW, updated_at=NOW
    )
    request = build_request(folded(resources=(resource,)), AGENT, offered(AGENT), {})
    assert "/mnt/session/uploads/a.csv" in str(request.system)


def test_an_attached_file_is_shown_or_said_to_be_gone() -> None:
    blocks = tuple(ImageBlock(source=FileSource(file_id=name)) for name in ("file_here", "file_gone"))
    state = folded(*message("sevt_1", *blocks))
    assert attached_files(state.transcript) == {"file_here", "file_gone"}
    files = {"file_here": Base64Source(media_type="image/png", data="aGk=")}
    (only,) = build_request(state, AGENT, (), files).messages
    content = only["content"]
    assert isinstance(content, list)
    assert content[0] == {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
    }
    assert "no longer exists" in str(content[1])


def test_thinking_and_effort_are_asked_only_of_models_that_take_them() -> None:
    state = folded(*message("sevt_1", TextBlock(text="hi")))
    assert build_request(state, AGENT, (), {}).body()["thinking"] == {"type": "adaptive"}
    other = AGENT.model_copy(update={"model": ModelConfig(id="llama-4", effort=Effort(type="high"))})
    body = build_request(state, other, (), {}).body()
    assert "thinking" not in body
    assert "output_config" not in body


def test_a_system_message_reaches_the_model_as_marked_text() -> None:
    system = ev.SystemMessage(id="sevt_s", content=(TextBlock(text="Be brief."),))
    state = folded(*message("sevt_1", TextBlock(text="hi")), system, internal.Processed(event_id="sevt_s"))
    assert "<system>\\nBe brief.\\n</system>" in str(messages_of(state))


def system_of(networking: Networking | None, agent: SessionAgent = AGENT, vault_ids: tuple[str, ...] = ()) -> str:
    state = folded()
    state.networking, state.vault_ids = networking, vault_ids
    return json.dumps(build_request(state, agent, offered(agent), {}).system)


def test_the_model_is_told_what_programs_reach() -> None:
    assert "There is no network." in system_of(None)
    assert "reach public hosts" in system_of(Unrestricted())
    closed = Limited(allowed_hosts=(), allow_mcp_servers=False, allow_package_managers=False)
    assert "Programs reach no host." in system_of(closed)
    some = closed.model_copy(update={"allowed_hosts": ("a.example", "*.b.example"), "allow_package_managers": True})
    said = system_of(some)
    assert "a.example, *.b.example, the public package registries" in said
    assert "placeholders" not in said
    assert "placeholders" in system_of(some, vault_ids=("vlt_1",))


def test_an_agent_that_has_no_tools_any_more_still_explains_its_earlier_calls() -> None:
    called = said(
        {"type": "tool_use", "id": "toolu_1", "name": "mcp__up__echo", "input": {}}, calls={"toolu_1": "sevt_1"}
    )
    used = ev.AgentMcpToolUse(id="sevt_1", mcp_server_name="up", name="echo", input={})
    result = ev.AgentMcpToolResult(id="sevt_2", mcp_tool_use_id="sevt_1", content=(TextBlock(text="ok"),))
    state = folded(*message("sevt_0", TextBlock(text="go")), called, used, result)
    (tool,) = build_request(state, AGENT, (), {}).tools
    assert (tool["name"], tool["input_schema"]) == ("mcp__up__echo", {"type": "object"})
