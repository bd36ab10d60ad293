"""What an agent becomes of a request: defaults, updates, overrides, and lists that must name each other."""

from datetime import UTC, datetime

import pytest
from galley_server.errors import InvalidRequest
from galley_server.runtime import recipe
from galley_server.wire.agent import Agent, AgentToolset, AlwaysAllow, AlwaysAsk, CustomTool, Effort, McpToolset
from galley_server.wire.agent_request import AgentCreate, AgentUpdate, AgentWithOverrides
from galley_server.wire.session_request import SessionAgentUpdate
from galley_server.wire.validation import take

AT = datetime(2026, 11, 23, 8, tzinfo=UTC)
LATER = datetime(2026, 11, 23, 9, tzinfo=UTC)
TOOLSET = {"type": "agent_toolset_20260401"}
SERVER = {"type": "url", "name": "crm", "url": "https://crm.example/mcp"}
MCP = {"type": "mcp_toolset", "mcp_server_name": "crm"}


def made(**fields: object) -> Agent:
    return recipe.new_agent(take(AgentCreate, {"name": "cook", "model": "m", **fields}), agent_id="agent_1", at=AT)


def changed(agent: Agent, **fields: object) -> Agent:
    return recipe.updated(agent, take(AgentUpdate, fields), at=LATER)


def run_with(agent: Agent, **fields: object) -> object:
    request = take(AgentWithOverrides, {"type": "agent_with_overrides", "id": agent.id, **fields})
    return recipe.overridden(recipe.snapshot(agent), request)


def test_a_bare_agent_has_every_default_filled_in() -> None:
    agent = made()
    assert (agent.version, agent.description, agent.system, agent.tools, agent.metadata) == (1, None, None, (), {})
    assert agent.model.model_dump() == {"id": "m", "effort": None, "inference_geo": None, "speed": "standard"}
    assert agent.execution_identity.type == "service_account"


def test_effort_takes_both_forms_and_is_shown_as_an_object() -> None:
    assert made(model={"id": "m", "effort": "high"}).model.effort == Effort(type="high")
    assert made(model={"id": "m", "effort": {"type": "low"}}).model.effort == Effort(type="low")


def test_built_in_tools_are_allowed_and_tools_of_servers_ask_unless_told_otherwise() -> None:
    built_in, served = made(tools=[TOOLSET, MCP], mcp_servers=[SERVER]).tools
    assert isinstance(built_in, AgentToolset)
    assert isinstance(served, McpToolset)
    assert built_in.default_config.permission_policy == AlwaysAllow()
    assert served.default_config.permission_policy == AlwaysAsk()


def test_a_tool_takes_from_the_default_config_what_it_does_not_say() -> None:
    default = {"enabled": False, "permission_policy": {"type": "always_ask"}}
    configs = [{"name": "bash", "enabled": True}, {"name": "read", "permission_policy": {"type": "always_allow"}}]
    (toolset,) = made(tools=[{**TOOLSET, "default_config": default, "configs": configs}]).tools
    assert isinstance(toolset, AgentToolset)
    bash, read = toolset.configs
    assert (bash.type, bash.enabled, bash.permission_policy) == ("bash", True, AlwaysAsk())
    assert (read.type, read.enabled, read.permission_policy) == ("read", False, AlwaysAllow())


def test_a_custom_tools_schema_keeps_the_keywords_nobody_named() -> None:
    schema = {"type": "object", "properties": {"a": {"default": None}}, "additionalProperties": False}
    (tool,) = made(tools=[{"type": "custom", "name": "t", "description": "d", "input_schema": schema}]).tools
    assert isinstance(tool, CustomTool)
    assert tool.input_schema.model_dump(exclude_unset=True) == schema


def test_an_update_that_changes_nothing_is_the_same_version() -> None:
    agent = made(description="d", tools=[TOOLSET], metadata={"k": "v"})
    same = changed(agent, name="cook", model="m", description="d", tools=[TOOLSET], metadata={"k": "v", "x": None})
    assert same is agent


def test_left_out_keeps_and_null_clears() -> None:
    agent = made(description="d", system="s", tools=[TOOLSET], metadata={"k": "v"})
    after = changed(agent, system=None, tools=None, metadata=None)
    assert (after.version, after.description, after.system, after.tools, after.metadata) == (2, "d", None, (), {})
    assert (after.created_at, after.updated_at) == (AT, LATER)


def test_an_empty_text_clears_as_null_does() -> None:
    after = changed(made(description="d", system="s"), description="", system="")
    assert (after.description, after.system) == (None, None)


def test_metadata_is_merged_key_by_key() -> None:
    after = changed(made(metadata={"a": "1", "b": "2"}), metadata={"a": None, "c": "3"})
    assert after.metadata == {"b": "2", "c": "3"}


def test_a_patch_may_not_grow_the_bag_beyond_its_limit() -> None:
    agent = made(metadata={str(i): "v" for i in range(16)})
    assert changed(agent, metadata={"0": None, "new": "v"}).metadata["new"] == "v"
    with pytest.raises(InvalidRequest, match=r"at most 16 pairs \(got 17") as refused:
        changed(agent, metadata={"new": "v"})
    assert refused.value.error_code == "invalid_metadata"


def test_effort_stays_with_a_model_that_stays_and_the_rest_is_replaced() -> None:
    agent = made(model={"id": "m", "effort": "high", "speed": "fast", "inference_geo": "eu"})
    same = changed(agent, model={"id": "m"}).model
    assert (same.effort, same.speed, same.inference_geo) == (Effort(type="high"), "standard", None)
    assert changed(agent, model="other").model.effort is None
    assert changed(agent, model={"id": "m", "effort": None}).model.effort is None


@pytest.mark.parametrize(
    ("tools", "servers", "says"),
    [
        ([MCP], [], "tools.0.mcp_server_name: 'crm' is not the name of one of mcp_servers"),
        ([TOOLSET], [SERVER], "mcp_servers.0.name: no mcp_toolset in tools refers to 'crm'"),
    ],
)
def test_servers_and_toolsets_must_name_each_other(tools: list[object], servers: list[object], says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        made(tools=tools, mcp_servers=servers)
    assert refused.value.message == says


def test_an_update_of_one_list_is_checked_against_the_stored_other() -> None:
    agent = made(tools=[MCP], mcp_servers=[SERVER])
    with pytest.raises(InvalidRequest, match="mcp_server_name"):
        changed(agent, mcp_servers=[])
    assert changed(agent, tools=[], mcp_servers=[]).mcp_servers == ()


def test_an_override_replaces_what_it_gives_and_keeps_id_and_version() -> None:
    agent = changed(made(system="s", tools=[TOOLSET]), description="second")
    run = recipe.snapshot(agent).model_copy(update={"system": None, "tools": ()})
    assert run_with(agent, system=None, tools=[]) == run
    assert (run.id, run.version) == ("agent_1", 2)


def test_the_effort_of_an_overridden_model_is_the_models_own() -> None:
    run = run_with(
        made(model={"id": "m", "effort": "high"}), model={"id": "m2", "effort": "max", "inference_geo": "eu"}
    )
    assert run == recipe.snapshot(made(model={"id": "m2", "inference_geo": "eu"}))


def test_clearing_servers_that_a_toolset_needs_is_refused_where_it_was_written() -> None:
    with pytest.raises(InvalidRequest, match=r"^agent\.tools\.0\.mcp_server_name: "):
        run_with(made(tools=[MCP], mcp_servers=[SERVER]), mcp_servers=[])


def test_a_session_can_get_other_tools_and_keeps_what_it_is_not_given() -> None:
    snapshot = recipe.snapshot(made(tools=[MCP], mcp_servers=[SERVER]))
    after = recipe.reequipped(snapshot, take(SessionAgentUpdate, {"tools": [TOOLSET, MCP]}))
    assert len(after.tools) == 2
    assert after.mcp_servers == snapshot.mcp_servers
