"""May this agent use this tool."""

import pytest
from galley_server.hands.permission import Custom, Denied, Governed, Ruling, enabled, rule
from galley_server.wire.agent import (
    AgentToolset,
    AlwaysAllow,
    AlwaysAsk,
    CustomTool,
    InputSchema,
    McpToolset,
    ModelConfig,
    SandboxToolConfig,
    SessionAgent,
    Tool,
    ToolDefault,
    WebSearchConfig,
)

ALLOW = ToolDefault(enabled=True, permission_policy=AlwaysAllow())
ASK = ToolDefault(enabled=True, permission_policy=AlwaysAsk())
OFF = ToolDefault(enabled=False, permission_policy=AlwaysAllow())
BASH_ASKS = SandboxToolConfig(type="bash", name="bash", enabled=True, permission_policy=AlwaysAsk())
BASH_OFF = SandboxToolConfig(type="bash", name="bash", enabled=False, permission_policy=AlwaysAllow())
BASH_ON = SandboxToolConfig(type="bash", name="bash", enabled=True, permission_policy=AlwaysAllow())
SEARCH_ON = WebSearchConfig(enabled=True, permission_policy=AlwaysAllow())
LOOKUP = CustomTool(
    name="lookup", description="Look an order up.", input_schema=InputSchema.model_validate({"type": "object"})
)


def agent(*tools: Tool) -> SessionAgent:
    return SessionAgent(
        id="agent_1",
        version=1,
        name="a",
        description=None,
        model=ModelConfig(id="m"),
        system=None,
        tools=tools,
        mcp_servers=(),
    )


def toolset(default: ToolDefault, *configs: SandboxToolConfig | WebSearchConfig) -> AgentToolset:
    return AgentToolset(default_config=default, configs=configs)


@pytest.mark.parametrize(
    ("tools", "name", "expected"),
    [
        ([toolset(ALLOW)], "bash", Governed(AlwaysAllow())),
        ([toolset(ASK)], "grep", Governed(AlwaysAsk())),
        ([toolset(ALLOW, BASH_ASKS)], "bash", Governed(AlwaysAsk())),
        ([toolset(ALLOW, BASH_ASKS)], "read", Governed(AlwaysAllow())),
        ([toolset(OFF, BASH_ON)], "bash", Governed(AlwaysAllow())),
        ([toolset(ASK), LOOKUP], "lookup", Custom()),
        ([LOOKUP], "lookup", Custom()),
    ],
)
def test_a_tools_own_config_outranks_the_default_and_custom_tools_are_not_governed(
    tools: list[Tool], name: str, expected: Ruling
) -> None:
    assert rule(agent(*tools), name) == expected


@pytest.mark.parametrize(
    ("tools", "name", "reason"),
    [
        ([toolset(ALLOW, BASH_OFF)], "bash", "not enabled"),
        ([toolset(OFF, BASH_ON)], "read", "not enabled"),
        ([toolset(ALLOW)], "web_fetch", "not enabled"),
        ([toolset(ALLOW, SEARCH_ON)], "web_search", "not enabled"),
        ([toolset(ALLOW)], "rm_rf", "no tool named 'rm_rf'"),
        ([LOOKUP], "bash", "no tool named 'bash'"),
        ([], "read", "no tool named 'read'"),
        ([McpToolset(mcp_server_name="s", default_config=ALLOW, configs=())], "s_tool", "no tool named"),
    ],
)
def test_a_tool_that_is_not_enabled_or_unknown_is_denied_with_words(tools: list[Tool], name: str, reason: str) -> None:
    ruling = rule(agent(*tools), name)
    assert isinstance(ruling, Denied)
    assert reason in ruling.reason


def test_a_policy_says_whether_to_ask() -> None:
    assert Governed(AlwaysAllow()).permission == "allow"
    assert Governed(AlwaysAsk()).permission == "ask"


def test_only_governed_tools_count_as_enabled_built_ins() -> None:
    it = agent(toolset(ALLOW, BASH_OFF), LOOKUP)
    assert [name for name in ("bash", "read", "lookup", "web_fetch") if enabled(it, name)] == ["read"]
