"""What a session may reach, from its agent and its environment: pure."""

import re
from typing import Any

import pytest
from galley_server.hands.access import ToolSet, access_of, door_names, host_permitted, matches, unlike
from galley_server.wire.agent import (
    AlwaysAllow,
    AlwaysAsk,
    McpServer,
    McpToolConfig,
    McpToolset,
    ModelConfig,
    PermissionPolicy,
    SessionAgent,
    ToolDefault,
)
from galley_server.wire.environment import Limited, Networking, Unrestricted

ALLOW, ASK = AlwaysAllow(), AlwaysAsk()
NONE, ALL = ToolSet(only=frozenset()), ToolSet()


def limited(*hosts: str, mcp: bool = False) -> Limited:
    return Limited(allowed_hosts=hosts, allow_mcp_servers=mcp, allow_package_managers=False)


def agent(*servers: tuple[str, str, McpToolset]) -> SessionAgent:
    return SessionAgent(
        id="agent_1",
        version=1,
        name="cook",
        description=None,
        model=ModelConfig(id="m"),
        system=None,
        tools=tuple(toolset for _, _, toolset in servers),
        mcp_servers=tuple(McpServer(name=name, url=url) for name, url, _ in servers),
    )


def toolset(
    server: str, policy: PermissionPolicy, *, enabled: bool = True, **tools: tuple[bool, PermissionPolicy]
) -> McpToolset:
    return McpToolset(
        mcp_server_name=server,
        default_config=ToolDefault(enabled=enabled, permission_policy=policy),
        configs=tuple(
            McpToolConfig(name=name, enabled=on, permission_policy=policy) for name, (on, policy) in tools.items()
        ),
    )


@pytest.mark.parametrize(
    ("tools", "enabled", "unasked"),
    [
        (toolset("s", ALLOW), ALL, ALL),
        (toolset("s", ASK), ALL, NONE),
        (toolset("s", ASK, a=(True, ALLOW)), ALL, ToolSet(only=frozenset({"a"}))),
        (toolset("s", ALLOW, a=(True, ASK)), ALL, ToolSet(without=frozenset({"a"}))),
        (toolset("s", ALLOW, a=(False, ALLOW)), ToolSet(without=frozenset({"a"})), ToolSet(without=frozenset({"a"}))),
        (toolset("s", ALLOW, enabled=False), NONE, NONE),
        (
            toolset("s", ALLOW, enabled=False, a=(True, ALLOW), b=(True, ASK)),
            ToolSet(only=frozenset({"a", "b"})),
            ToolSet(only=frozenset({"a"})),
        ),
    ],
)
def test_what_is_enabled_is_the_brains_and_what_nobody_is_asked_about_the_sandboxs(
    tools: McpToolset, enabled: ToolSet, unasked: ToolSet
) -> None:
    (server,) = access_of(agent(("s", "https://a.example/mcp", tools)), Unrestricted(), ()).servers
    assert (server.enabled, server.unasked) == (enabled, unasked)


def test_nothing_is_empty_but_a_choice_of_nothing() -> None:
    assert [tools.empty for tools in (ALL, NONE, ToolSet(only=frozenset({"a"})))] == [False, True, False]
    assert ToolSet(only=frozenset({"a"}), without=frozenset({"a"})).empty


@pytest.mark.parametrize(
    ("url", "networking", "blocked"),
    [
        ("https://mcp.example.com/x", None, False),
        ("https://mcp.example.com/x", Unrestricted(), False),
        ("https://mcp.example.com/x", limited(), True),
        ("https://mcp.example.com/x", limited(mcp=True), False),
        ("https://mcp.example.com/x", limited("mcp.example.com"), False),
        ("https://mcp.example.com/x", limited("*.example.com"), False),
        ("https://example.com/x", limited("*.example.com"), True),
        ("https://MCP.Example.com/x", limited("mcp.example.com"), False),
        ("https://mcp.example.com.evil.org/x", limited("mcp.example.com"), True),
        ("stdio:files", limited(), False),
    ],
)
def test_a_limited_environment_blocks_servers_it_does_not_name(
    url: str, networking: Networking | None, blocked: bool
) -> None:
    (server,) = access_of(agent(("s", url, toolset("s", ALLOW))), networking, ()).servers
    assert (server.blocked is not None) == blocked


@pytest.mark.parametrize(
    ("pattern", "host", "yes"),
    [
        ("example.com", "example.com", True),
        ("Example.com", "EXAMPLE.com.", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", ".example.com", False),
    ],
)
def test_host_patterns(pattern: str, host: str, yes: bool) -> None:
    assert matches(pattern, host) == yes
    assert host_permitted(limited(pattern), host) == yes


def test_the_same_agent_has_the_same_access_however_it_was_read() -> None:
    one = agent(("s", "https://a.example/mcp", toolset("s", ASK, a=(True, ALLOW), b=(True, ALLOW))))
    again = SessionAgent.model_validate_json(one.model_dump_json())
    assert access_of(one, Unrestricted(), ("v", "v")) == access_of(again, Unrestricted(), ("v",))


def test_a_door_is_called_as_its_server_where_a_path_can_say_that() -> None:
    assert door_names(["github", "my-docs.v2"]) == ["github", "my-docs.v2"]
    odd = door_names(["a/b", "a?b", "a b", "..", "ü" * 255, "ü" * 254])
    assert len(set(odd)) == len(odd)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) and name.strip(".") for name in odd)


def test_names_that_would_be_alike_stay_apart() -> None:
    parts: list[Any] = [("a", "b__c"), ("a__b", "c"), ("a_", "b_c"), ("a", "b__c ")]
    found = unlike(parts, re.compile(r"[^A-Za-z0-9_-]"), most=16)
    assert len(set(found)) == 4
    assert found == unlike(parts, re.compile(r"[^A-Za-z0-9_-]"), most=16)
