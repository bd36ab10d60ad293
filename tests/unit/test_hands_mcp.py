"""The tools of MCP servers under the names that a model knows them by: pure."""

import pytest
from galley_server.hands.mcp import MOST, by_model_name, definitions, presentable, schema_of
from galley_server.hands.permission import Denied, Governed, McpRef, rule
from galley_server.log.internal import McpListing, McpTool
from galley_server.wire.base import JSON

from tests.unit.test_hands_access import ALLOW, ASK, agent, toolset

URL = "https://a.example/mcp"
OBJECT: dict[str, JSON] = {"type": "object"}


def listing(*names: str, server: str = "s", url: str = URL) -> dict[str, McpListing]:
    tools = tuple(McpTool(name=name, input_schema=OBJECT) for name in names)
    return {server: McpListing(server=server, url=url, tools=tools)}


def test_a_listed_tool_is_governed_by_its_toolset() -> None:
    cook = agent(("s", URL, toolset("s", ASK, free=(True, ALLOW), off=(False, ALLOW))))
    listed = listing("free", "other", "off")
    assert rule(cook, "mcp__s__free", listed) == Governed(ALLOW, McpRef("s", "free"))
    assert rule(cook, "mcp__s__other", listed) == Governed(ASK, McpRef("s", "other"))
    denied = rule(cook, "mcp__s__off", listed)
    assert isinstance(denied, Denied)
    assert denied.mcp == McpRef("s", "off")


@pytest.mark.parametrize("name", ["mcp__s__nothing", "mcp__t__free", "mcp__", "mcp__s", "mcp__s__free__"])
def test_what_is_not_listed_is_no_tool(name: str) -> None:
    cook = agent(("s", URL, toolset("s", ALLOW)))
    ruling = rule(cook, name, listing("free"))
    assert isinstance(ruling, Denied)
    assert ruling.mcp is None


def test_the_list_of_a_server_that_has_moved_does_not_count() -> None:
    cook = agent(("s", URL, toolset("s", ALLOW)))
    assert by_model_name(cook, listing("free", url="https://b.example/mcp")) == {}


def test_a_tool_called_like_one_of_ours_is_another_one() -> None:
    cook = agent(("s", URL, toolset("s", ALLOW)))
    assert isinstance(rule(cook, "bash", listing("bash")), Denied)
    assert rule(cook, "mcp__s__bash", listing("bash")) == Governed(ALLOW, McpRef("s", "bash"))


def test_only_enabled_ones_are_offered_in_the_order_of_the_servers() -> None:
    cook = agent(("z", URL, toolset("z", ALLOW, b=(False, ALLOW))), ("a", URL, toolset("a", ASK)))
    listed = listing("a", "b", "c", server="z") | listing("a", server="a")
    assert [tool.name for tool in definitions(cook, listed)] == ["mcp__z__a", "mcp__z__c", "mcp__a__a"]


def test_a_server_without_end_is_offered_in_part() -> None:
    cook = agent(("s", URL, toolset("s", ALLOW)))
    assert len(definitions(cook, listing(*map(str, range(MOST + 5))))) == MOST


def test_a_tool_without_a_description_is_described_by_where_it_is_from() -> None:
    (offered,) = definitions(agent(("s", URL, toolset("s", ALLOW))), listing("free"))
    assert offered.description == "The tool free of the MCP server s."


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({}, {"type": "object"}),
        (
            {"type": "object", "properties": {"a": {"oneOf": [{}]}}},
            {"type": "object", "properties": {"a": {"oneOf": [{}]}}},
        ),
        (
            {"type": "object", "oneOf": [], "anyOf": [], "allOf": [], "required": ["a"]},
            {"type": "object", "required": ["a"]},
        ),
        ({"type": "string"}, None),
        ({"type": "object", "properties": {"a b": {}}}, None),
        ({"type": "object", "properties": {"a" * 65: {}}}, None),
        ({"type": "object", "properties": []}, None),
    ],
)
def test_a_schema_is_shown_as_the_messages_api_takes_it(schema: dict[str, JSON], shown: dict[str, JSON] | None) -> None:
    assert presentable(schema) == shown


def test_the_schema_of_a_call_is_the_one_that_was_listed() -> None:
    assert schema_of(listing("free"), "s", "free") == OBJECT
    assert schema_of(listing("free"), "s", "other") is None
    assert schema_of({}, "s", "free") is None
