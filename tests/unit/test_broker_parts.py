"""The parts of the broker that decide: requests, answers, contents, grants. Pure."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from galley_server.broker import mcp_wire
from galley_server.broker.content import MAX_SCHEMA, outcome_of, tools_of
from galley_server.broker.grants import _narrowed, reachable, request_of
from galley_server.broker.mcp_wire import Failure
from galley_server.hands.access import access_of
from galley_server.hands.results import MAX_CHARACTERS
from galley_server.wire.content import DocumentBlock, ImageBlock, TextBlock
from galley_server.wire.environment import Limited, Unrestricted
from galley_vault_proxy.grant.token import Grant, ServerRule, mint, read

from tests.unit.test_hands_access import ALLOW, ASK, agent, limited, toolset

PNG = "iVBORw0KGgo="


def test_the_request_for_a_grant_says_what_the_session_may_reach() -> None:
    cook = agent(
        ("all", "https://all.example/mcp", toolset("all", ASK)),
        ("some", "https://some.example/mcp", toolset("some", ALLOW, enabled=False, b=(True, ALLOW), a=(True, ASK))),
        ("none", "https://none.example/mcp", toolset("none", ALLOW, enabled=False)),
    )
    networking = Limited(allowed_hosts=("a.example", "a.example"), allow_mcp_servers=True, allow_package_managers=True)
    assert request_of("sesn_1", access_of(cook, networking, ("vlt_1",))) == {
        "session_id": "sesn_1",
        "vault_ids": ["vlt_1"],
        "mcp_servers": [
            {"name": "all", "url": "https://all.example/mcp"},
            {"name": "some", "url": "https://some.example/mcp", "tools": ["a", "b"]},
        ],
        "tunnel": "sesn_1",
        "expires_in": 43200,
        "network": "limited",
        "hosts": [{"host": "a.example"}],
        "presets": ["package_managers", "mcp_servers"],
    }


def test_without_a_network_a_grant_names_no_host() -> None:
    cook = agent(("all", "https://all.example/mcp", toolset("all", ASK)))
    asked = request_of("sesn_1", access_of(cook, None, ()))
    assert asked["network"] == "limited"
    assert "hosts" not in asked
    assert request_of("sesn_1", access_of(cook, Unrestricted(), ()))["network"] == "unrestricted"


def test_a_server_that_the_environment_blocks_is_in_no_grant() -> None:
    cook = agent(("all", "https://all.example/mcp", toolset("all", ALLOW)))
    assert request_of("sesn_1", access_of(cook, limited(), ()))["mcp_servers"] == []


def narrowed(*servers: Any, sandbox: bool) -> dict[str, ServerRule]:
    access = access_of(agent(*servers), Unrestricted(), ())
    rules = tuple(ServerRule(server.door, server.url) for server in reachable(access))
    token = mint(b"k" * 32, Grant("grant_1", "sesn_1", datetime(2030, 1, 1, tzinfo=UTC), servers=rules))
    return {rule.name: rule for rule in read(_narrowed(token, reachable(access), sandbox=sandbox)).servers}


def test_the_sandbox_gets_the_tools_that_nobody_is_asked_about() -> None:
    servers = (
        ("free", "https://a.example", toolset("free", ALLOW)),
        ("asked", "https://b.example", toolset("asked", ASK)),
        ("but", "https://c.example", toolset("but", ALLOW, danger=(True, ASK), off=(False, ALLOW))),
        ("few", "https://d.example", toolset("few", ASK, safe=(True, ALLOW))),
    )
    found = narrowed(*servers, sandbox=True)
    assert found.keys() == {"free", "but", "few"}
    assert found["free"].everything
    assert [found["but"].allows(tool) for tool in ("any", "danger", "off")] == [True, False, False]
    assert [found["few"].allows(tool) for tool in ("any", "safe")] == [False, True]
    brains = narrowed(*servers, sandbox=False)
    assert brains.keys() == {"free", "asked", "but", "few"}
    assert [brains["but"].allows(tool) for tool in ("any", "danger", "off")] == [True, True, False]


def test_a_grant_of_twenty_servers_can_be_narrowed_for_each() -> None:
    servers = [(f"s{n}", f"https://{n}.example", toolset(f"s{n}", ALLOW, danger=(True, ASK))) for n in range(20)]
    found = narrowed(*servers, sandbox=True)
    assert [rule.allows("danger") for rule in found.values()] == [False] * 20


def test_a_request_says_what_the_revision_wants_said() -> None:
    message = json.loads(mcp_wire.body("tools/call", {"name": "echo", "arguments": {}}))
    assert message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    schema: Any = {
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
            "absent": {"type": "string", "x-mcp-header": "Absent"},
        },
    }
    sent = dict(mcp_wire.call_headers("é", schema, {"region": "eu ", "deep": {"n": 3}}))
    assert sent[b"mcp-method"] == b"tools/call"
    assert sent[b"mcp-name"] == b"=?base64?w6k=?="
    assert sent[b"mcp-param-region"] == b"=?base64?ZXUg?="
    assert sent[b"mcp-param-n"] == b"3"
    assert b"mcp-param-absent" not in sent


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"a":1}}', {"a": 1}),
        (b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}', None),
        (b"[]", None),
        (b"nonsense", Failure(0, "the answer is not JSON")),
        (b"[" * 100_000, Failure(0, "the answer is not JSON")),
        (b'{"id":1}', Failure(0, "the answer is neither a result nor an error")),
        (b'{"id":1,"error":{"code":-32602,"message":"Unknown tool: x"}}', Failure(-32602, "Unknown tool: x")),
        (
            b'{"id":1,"error":{"code":-1,"message":"m","data":{"type":"t","nothing_done":true}}}',
            Failure(-1, "m", "t", nothing_done=True),
        ),
        (b'{"id":1,"error":{"code":-1,"message":"m","data":{"nothing_done":"yes"}}}', Failure(-1, "m")),
    ],
)
def test_an_answer_is_read_for_what_it_is(data: bytes, found: object) -> None:
    assert mcp_wire.answer(data) == found


def test_every_kind_of_content_becomes_something_that_a_model_can_read() -> None:
    content = [
        {"type": "text", "text": "hello"},
        {"type": "image", "data": PNG, "mimeType": "image/png"},
        {"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}},
        {"type": "resource", "resource": {"uri": "file:///b", "blob": "JVBERi0=", "mimeType": "application/pdf"}},
        {"type": "resource_link", "uri": "https://a.example/x", "name": "x"},
        {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
        {"type": "image", "data": "not base64!", "mimeType": "image/png"},
        "nonsense",
    ]
    blocks = outcome_of({"content": content}).content
    assert [type(block) for block in blocks] == [
        TextBlock,
        ImageBlock,
        TextBlock,
        DocumentBlock,
        TextBlock,
        TextBlock,
        TextBlock,
    ]
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    assert texts[:4] == [
        "hello",
        "[file:///a]\ninside",
        "[x: https://a.example/x]",
        "[left out: content of the type 'audio']",
    ]


def test_structured_content_is_read_where_there_is_no_text_beside_it() -> None:
    assert outcome_of({"content": [], "structuredContent": {"n": 1}}).content == (TextBlock(text='{"n": 1}'),)
    both = {"content": [{"type": "text", "text": "one"}], "structuredContent": {"n": 1}}
    assert outcome_of(both).content == (TextBlock(text="one"),)


def test_an_answer_without_end_is_cut_off_and_an_empty_error_says_something() -> None:
    long = outcome_of({"content": [{"type": "text", "text": "x" * (MAX_CHARACTERS + 1)}]})
    assert "output truncated" in str(long.content[-1])
    empty = outcome_of({"content": [], "isError": True})
    assert (empty.is_error, len(empty.content)) == (True, 1)
    assert outcome_of({"isError": "yes"}).is_error is False


def test_what_a_server_lists_is_taken_only_where_it_is_a_tool() -> None:
    marked = {"type": "object", "properties": {"a": {"type": "number", "x-mcp-header": "A"}}}
    listed = [
        {"name": "good", "inputSchema": {"type": "object"}, "description": "Does good"},
        {"name": "blank", "inputSchema": {"type": "object"}, "description": "  "},
        {"name": "", "inputSchema": {}},
        {"name": "x" * 300, "inputSchema": {}},
        {"name": "no schema"},
        {"name": "huge", "inputSchema": {"x": "y" * MAX_SCHEMA}},
        {"name": "wrongly marked", "inputSchema": marked},
        "nonsense",
    ]
    assert [(tool.name, tool.description) for tool in tools_of(listed)] == [("good", "Does good"), ("blank", None)]
    assert tools_of({"not": "a list"}) == []
