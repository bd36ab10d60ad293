"""What a model is offered."""

import json
from typing import get_args

import pytest
from anthropic.types import beta as official
from galley_server.hands.inputs import INPUTS
from galley_server.hands.tools import SANDBOX_TOOLS, offered
from galley_server.wire.agent import (
    AgentToolset,
    AlwaysAllow,
    AlwaysAsk,
    CustomTool,
    InputSchema,
    ModelConfig,
    SandboxTool,
    SandboxToolConfig,
    SessionAgent,
    Tool,
    ToolDefault,
)
from galley_server.wire.base import JSON
from pydantic import BaseModel

OFFICIAL: dict[str, type[BaseModel]] = {
    "bash": official.BetaManagedAgentsAgentToolset20260401BashInput,
    "read": official.BetaManagedAgentsAgentToolset20260401ReadInput,
    "write": official.BetaManagedAgentsAgentToolset20260401WriteInput,
    "edit": official.BetaManagedAgentsAgentToolset20260401EditInput,
    "glob": official.BetaManagedAgentsAgentToolset20260401GlobInput,
    "grep": official.BetaManagedAgentsAgentToolset20260401GrepInput,
}
ALL_ON = AgentToolset(default_config=ToolDefault(enabled=True, permission_policy=AlwaysAsk()), configs=())


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


def custom(name: str) -> CustomTool:
    schema: dict[str, JSON] = {
        "type": "object",
        "properties": {"id": {"type": "string", "default": None}},
        "required": ["id"],
        "additionalProperties": False,
    }
    return CustomTool(name=name, description=f"Do {name}.", input_schema=InputSchema.model_validate(schema))


@pytest.mark.parametrize("name", get_args(SandboxTool))
def test_an_offered_schema_has_exactly_the_official_fields(name: str) -> None:
    (definition,) = (tool for tool in offered(agent(ALL_ON)) if tool.name == name)
    fields = OFFICIAL[name].model_fields
    assert set(definition.input_schema["properties"]) == set(fields)  # type: ignore[arg-type]
    assert definition.input_schema["required"] == sorted(
        (field for field, info in fields.items() if info.is_required()), key=list(INPUTS[name].model_fields).index
    )
    assert set(INPUTS[name].model_fields) == set(fields)


def test_every_sandbox_tool_is_offered_in_a_fixed_order_before_the_custom_ones() -> None:
    names = [tool.name for tool in offered(agent(custom("b"), ALL_ON, custom("a")))]
    assert names == ["bash", "read", "write", "edit", "glob", "grep", "b", "a"]
    assert frozenset(get_args(SandboxTool)) == SANDBOX_TOOLS


def test_equal_agents_are_offered_equal_bytes() -> None:
    first, second = (
        json.dumps([(tool.name, tool.description, dict(tool.input_schema)) for tool in offered(it)])
        for it in (agent(ALL_ON, custom("a")), agent(ALL_ON, custom("a")))
    )
    assert first == second


def test_a_tool_that_is_off_is_not_offered() -> None:
    off = SandboxToolConfig(type="bash", name="bash", enabled=False, permission_policy=AlwaysAllow())
    tools = AgentToolset(default_config=ALL_ON.default_config, configs=(off,))
    assert "bash" not in [tool.name for tool in offered(agent(tools))]


def test_an_agent_without_tools_is_offered_none() -> None:
    assert offered(agent()) == ()


def test_a_custom_schema_arrives_as_its_author_wrote_it() -> None:
    (definition,) = offered(agent(custom("a")))
    assert definition.input_schema == {
        "type": "object",
        "properties": {"id": {"type": "string", "default": None}},
        "required": ["id"],
        "additionalProperties": False,
    }
