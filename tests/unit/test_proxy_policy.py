"""The one decision, as tables."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from galley_vault_proxy.grant.token import Grant, HostRule, ServerRule
from galley_vault_proxy.policy import Allow, Decision, Deny, HostAccess, Reason, Request, ServerAccess, ToolCall, decide

LATER = datetime(2030, 1, 1, tzinfo=UTC)
GRANT = Grant(
    "grant_1",
    "sesn_1",
    LATER,
    servers=(
        ServerRule("all", "https://all.example/mcp"),
        ServerRule("some", "https://some.example:8443/mcp", frozenset({"read"})),
        ServerRule("none", "stdio:none", frozenset()),
        ServerRule("but", "https://but.example/mcp", without=frozenset({"write"})),
    ),
    hosts=(
        HostRule("plain.example"),
        HostRule("port.example", ports=(8443,)),
        HostRule("api.example", methods=("GET", "HEAD"), paths=("/repos", "/v1/")),
        HostRule("*.wide.example", methods=("GET",)),
        HostRule("x.wide.example", ports=(443,)),
        HostRule("10.1.2.3"),
    ),
)


def verdict(decision: Decision) -> Reason | None:
    return decision.reason if isinstance(decision, Deny) else None


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ToolCall("all", "anything"), None),
        (ToolCall("some", "read"), None),
        (ToolCall("some", "write"), "tool_not_granted"),
        (ToolCall("some", "Read"), "tool_not_granted"),
        (ToolCall("some", ""), "tool_not_granted"),
        (ToolCall("none", "read"), "tool_not_granted"),
        (ToolCall("other", "read"), "server_not_granted"),
        (ToolCall("ALL", "read"), "server_not_granted"),
        (ToolCall("but", "read"), None),
        (ToolCall("but", "write"), "tool_not_granted"),
        (ServerAccess("but", "tools/list"), None),
        (ServerAccess("but", "resources/read"), "method_not_granted"),
        (ServerAccess("all"), None),
        (ServerAccess("some"), None),
        (ServerAccess("other"), "server_not_granted"),
        (ServerAccess("all", "resources/read"), None),
        (ServerAccess("some", "initialize"), None),
        (ServerAccess("some", "tools/list"), None),
        (ServerAccess("some", "notifications/cancelled"), None),
        (ServerAccess("some", "resources/read"), "method_not_granted"),
        (ServerAccess("some", "prompts/get"), "method_not_granted"),
        (ServerAccess("some", "completion/complete"), "method_not_granted"),
        (ServerAccess("some", "vendor/everything"), "method_not_granted"),
        (ServerAccess("some", "tools/list\nresources/read"), "method_not_granted"),
    ],
)
def test_servers_and_tools(request_: Request, reason: Reason | None) -> None:
    assert verdict(decide(GRANT, request_)) == reason


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("plain.example", 443, None),
        ("plain.example", 80, None),
        ("plain.example", 22, "port_not_granted"),
        ("sub.plain.example", 443, "host_not_granted"),
        ("plain.example.evil.example", 443, "host_not_granted"),
        ("evilplain.example", 443, "host_not_granted"),
        ("port.example", 8443, None),
        ("port.example", 443, "port_not_granted"),
        ("a.wide.example", 443, None),
        ("a.b.wide.example", 443, None),
        ("wide.example", 443, "host_not_granted"),
        ("evilwide.example", 443, "host_not_granted"),
        ("10.1.2.3", 443, None),
        ("pypi.org", 443, "host_not_granted"),
        ("all.example", 443, "host_not_granted"),
    ],
)
def test_connections(host: str, port: int, reason: Reason | None) -> None:
    assert verdict(decide(GRANT, HostAccess(host, port))) == reason


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/repos", True),
        ("get", "/repos", True),
        ("HEAD", "/repos/acme/x", True),
        ("GET", "/v1/", True),
        ("GET", "/v1/things", True),
        ("GET", "/repos/with%20blank", True),
        ("POST", "/repos", False),
        ("GET", "/", False),
        ("GET", "/reposition", False),
        ("GET", "/v1", False),
        ("GET", "/REPOS", False),
        ("GET", "/repos/../admin", False),
        ("GET", "/repos/..", False),
        ("GET", "/repos/./x", False),
        ("GET", "/repos/%2e%2e/admin", False),
        ("GET", "/repos/.%2E/admin", False),
        ("GET", "/repos/..;/admin", False),
        ("GET", "/repos/..%3b/admin", False),
        ("GET", "/repos%2fx", False),
        ("GET", "/repos/%252e%252e/admin", False),
        ("GET", "/repos/%00", False),
        ("GET", "/repos//admin", False),
        ("GET", "/repos\\..\\admin", False),
        ("GET", "/repos/%5c..%5cadmin", False),
        ("GET", "repos", False),
        ("GET", "http://other.example/repos", False),
        ("GET", "*", False),
        ("GET", None, False),
    ],
)
def test_requests_of_an_inspected_host(method: str, path: str | None, allowed: bool) -> None:
    decision = decide(GRANT, HostAccess("api.example", 443, method, path))
    assert verdict(decision) == (None if allowed else "request_not_granted")


def test_a_host_with_method_rules_is_connected_to_only_to_be_read() -> None:
    assert decide(GRANT, HostAccess("api.example", 443)) == Allow(inspect=True)
    assert decide(GRANT, HostAccess("api.example", 443, "GET", "/repos")) == Allow(inspect=True)


def test_of_two_rules_the_wider_one_counts() -> None:
    assert decide(GRANT, HostAccess("x.wide.example", 443)) == Allow()
    assert decide(GRANT, HostAccess("y.wide.example", 443)) == Allow(inspect=True)


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("anything.example", 443, None),
        ("anything.example", 22, None),
        ("plain.example", 22, None),
        ("port.example", 443, "port_not_granted"),
    ],
)
def test_under_unrestricted_a_host_with_rules_is_held_to_them(host: str, port: int, reason: Reason | None) -> None:
    assert verdict(decide(replace(GRANT, network="unrestricted"), HostAccess(host, port))) == reason


def test_under_unrestricted_methods_still_count() -> None:
    decision = decide(replace(GRANT, network="unrestricted"), HostAccess("api.example", 443, "POST", "/repos"))
    assert verdict(decision) == "request_not_granted"


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("pypi.org", 443, None),
        ("deb.debian.org", 80, None),
        ("registry.npmjs.org", 443, None),
        ("pypi.org", 22, "port_not_granted"),
        ("evil.pypi.org", 443, "host_not_granted"),
    ],
)
def test_package_managers_are_a_preset(host: str, port: int, reason: Reason | None) -> None:
    assert verdict(decide(replace(GRANT, presets=("package_managers",)), HostAccess(host, port))) == reason


def test_the_preset_of_mcp_servers_follows_the_servers() -> None:
    grant = replace(GRANT, presets=("mcp_servers",))
    assert decide(grant, HostAccess("all.example", 443)) == Allow()
    assert decide(grant, HostAccess("some.example", 443)) == Allow()
    narrower = replace(grant, servers=grant.servers[1:])
    assert verdict(decide(narrower, HostAccess("all.example", 443))) == "host_not_granted"


def test_a_grant_of_nothing_allows_nothing() -> None:
    bare = Grant("grant_1", "sesn_1", LATER)
    for request in (ServerAccess("all"), ToolCall("all", "x"), HostAccess("plain.example", 443)):
        assert isinstance(decide(bare, request), Deny)
