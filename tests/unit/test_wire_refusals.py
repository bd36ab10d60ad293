"""What is wrong with a request is said once, in the official style: where, what should be there, what was there."""

import json

import pytest
from galley_server.errors import InvalidRequest
from galley_server.wire.agent_request import AgentCreate, AgentUpdate
from galley_server.wire.environment import EnvironmentCreate, EnvironmentUpdate
from galley_server.wire.event_request import EventsSend
from galley_server.wire.query import AgentQuery, EventQuery, FileQuery, ModelQuery, SessionQuery
from galley_server.wire.session_request import SessionCreate, SessionUpdate
from galley_server.wire.validation import parse, shown, take
from pydantic import BaseModel

AGENT = {"name": "cook", "model": "m"}
SESSION = {"agent": "agent_1", "environment_id": "env_1"}
SCHEMA = {"type": "object"}
CUSTOM = {"type": "custom", "name": "weather", "description": "d", "input_schema": SCHEMA}
TOOLSET = {"type": "agent_toolset_20260401"}


def refused(model: type[BaseModel], request: object) -> InvalidRequest:
    raw = request if isinstance(request, bytes) else json.dumps(request).encode()
    with pytest.raises(InvalidRequest) as caught:
        parse(model, raw)
    return caught.value


def text(value: object) -> dict[str, object]:
    return {"type": "text", "text": value}


def message(*content: object) -> dict[str, object]:
    return {"type": "user.message", "content": list(content)}


def image(**source: object) -> dict[str, object]:
    return {"type": "image", "source": source}


def sent(*events: object) -> dict[str, object]:
    return {"events": list(events)}


def tooled(*tools: object, **more: object) -> dict[str, object]:
    return {**AGENT, "tools": list(tools), **more}


def configured(**config: object) -> dict[str, object]:
    return tooled({**TOOLSET, "configs": [config]})


def networked(**networking: object) -> dict[str, object]:
    return {"name": "n", "config": {"type": "cloud", "networking": networking}}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "name: Field required; model: Field required"),
        ({"nam": "x"}, "nam: Extra inputs are not permitted (got 'x')"),
        ({**AGENT, "agent_toolset": {}}, "agent_toolset: Extra inputs are not permitted"),
        ({**AGENT, "name": ""}, "name: String should have at least 1 character"),
        ({**AGENT, "name": "x" * 257}, "name: String should have at most 256 characters (got 257)"),
        ({**AGENT, "name": 5}, "name: Input should be a valid string (got 5)"),
        ({**AGENT, "description": "x" * 2049}, "description: String should have at most 2048 characters"),
        ({**AGENT, "system": "x" * 100_001}, "system: String should have at most 100000 characters (got 100001)"),
        ({**AGENT, "model": None}, "model: Input should be an object (got null)"),
        ({**AGENT, "model": {"effort": "high"}}, "model.id: Field required"),
        ({**AGENT, "model": {"id": "m", "effort": "huge"}}, "model.effort: Input should be 'low', 'medium'"),
        ({**AGENT, "model": {"id": "m", "speed": "warp"}}, "model.speed: Input should be 'standard' or 'fast'"),
        (tooled("bash"), "tools.0: Input should be an object (got 'bash')"),
        (tooled({}), "tools.0.type: Field required"),
        (
            tooled({"type": "agent_toolset"}),
            "tools.0.type: Input should be 'agent_toolset_20260401', 'mcp_toolset' or 'custom' (got 'agent_toolset')",
        ),
        (tooled(TOOLSET, TOOLSET), "tools.1.type: The toolset 'agent_toolset_20260401' is given more than once"),
        (tooled(CUSTOM, CUSTOM), "tools.1.name: The tool 'weather' is given more than once"),
        (tooled(*[{**CUSTOM, "name": f"t{i}"} for i in range(129)]), "tools: Array should have at most 128 items"),
        (tooled({**CUSTOM, "name": "bash"}), "tools.0.name: 'bash' is the name of a built-in tool"),
        (tooled({**CUSTOM, "name": "mcp__x"}), "tools.0.name: Names that begin with 'mcp__'"),
        (tooled({**CUSTOM, "name": "two words"}), "tools.0.name: Tool names should have 1 to 128 characters"),
        (tooled({**CUSTOM, "description": ""}), "tools.0.description: String should have at least 1 character"),
        (tooled({**CUSTOM, "input_schema": {"type": "array"}}), "tools.0.input_schema.type: Input should be 'object'"),
        (
            tooled({**CUSTOM, "input_schema": {**SCHEMA, "anyOf": []}}),
            "tools.0.input_schema.anyOf: anyOf is not supported at the top level",
        ),
        (
            tooled({**CUSTOM, "input_schema": {**SCHEMA, "properties": {"a": {"items": {"$ref": "#"}}}}}),
            "tools.0.input_schema.properties.a.items.$ref: $ref is not supported",
        ),
        (
            tooled({**CUSTOM, "input_schema": {**SCHEMA, "properties": {"a b": {}}}}),
            "tools.0.input_schema.properties.a b: Property names should have 1 to 64 characters",
        ),
        (configured(name="bosh"), "tools.0.configs.0.name: Input should be 'bash', 'read', "),
        (configured(name="bash", type="read"), "tools.0.configs.0.type: Input should be 'bash', the same as name"),
        (
            configured(name="bash", permission_policy={"type": "auto"}),
            "tools.0.configs.0.permission_policy: The permission policy 'auto' is not supported",
        ),
        (configured(name="web_search", allowed_domains=[]), "allowed_domains: Array should have at least 1 item"),
        (
            configured(name="web_fetch", allowed_domains=["ok.example", "10.0.0.1"]),
            "tools.0.configs.0.allowed_domains.1: IP addresses are not supported; provide a plain hostname",
        ),
        (configured(name="web_fetch", blocked_domains=["https://a.example"]), "schemes and paths are not supported"),
        (configured(name="web_fetch", blocked_domains=["localhost"]), "top-level and local names are not supported"),
        (
            configured(name="web_fetch", allowed_domains=["a.example"], blocked_domains=["b.example"]),
            "tools.0.configs.0.blocked_domains: allowed_domains and blocked_domains cannot be combined",
        ),
        (
            {**AGENT, "mcp_servers": [{"type": "url", "name": "a", "url": "ftp://x"}]},
            "mcp_servers.0.url: Input should be an http or https URL",
        ),
        (
            {**AGENT, "mcp_servers": [{"type": "url", "name": "a", "url": "http://x"}] * 2},
            "mcp_servers.1.name: The MCP server 'a' is given more than once",
        ),
        ({**AGENT, "skills": [{"type": "custom", "skill_id": "s"}]}, "skills: Skills are not supported"),
        ({**AGENT, "multiagent": {"type": "coordinator"}}, "multiagent: Multiagent orchestration is not supported"),
        (
            {**AGENT, "execution_identity": {"type": "aws_role", "role_arn": "arn"}},
            "execution_identity: The execution identity 'aws_role' is not supported; use 'service_account'",
        ),
        ({**AGENT, "metadata": {"k": 1}}, "metadata.k: Input should be a valid string (got 1)"),
    ],
)
def test_a_bad_agent_is_refused_by_place_and_value(request_: object, says: str) -> None:
    assert says in refused(AgentCreate, request_).message


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({str(i): "v" for i in range(17)}, "metadata: Metadata should have at most 16 pairs (got 17)"),
        ({"k" * 65: "v"}, f"metadata.{'k' * 65}: Key should have at most 64 characters (got 65)"),
        ({"k": "v" * 513}, "metadata.k: Value should have at most 512 characters (got 513)"),
    ],
)
@pytest.mark.parametrize(
    ("model", "base"), [(AgentCreate, AGENT), (SessionCreate, SESSION), (EnvironmentCreate, {"name": "n"})]
)
def test_metadata_beyond_its_limits_has_a_code_of_its_own(
    model: type[BaseModel], base: dict[str, object], metadata: object, says: str
) -> None:
    error = refused(model, {**base, "metadata": metadata})
    assert error.message == says
    assert error.error_code == "invalid_metadata"


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (
            message(text("a"), {"type": "video"}),
            "events.0.content.1.type: Input should be 'text', 'image' or 'document' (got 'video')",
        ),
        (message(), "events.0.content: Array should have at least 1 item"),
        (message(text(5)), "events.0.content.0.text: Input should be a valid string (got 5)"),
        (message(text(" \n")), "events.0.content.0.text: Text should hold more than white space"),
        (message({"type": "redacted"}), "events.0.content.0: A redacted block cannot be sent"),
        (message(image(type="base64", media_type="image/png", data="no!")), "source.data: Input should be base64"),
        (
            message(image(type="base64", media_type="image/tiff", data="AA==")),
            "source.media_type: Input should be 'image/png'",
        ),
        (message(image(type="ftp")), "events.0.content.0.source.type: Input should be 'base64', 'url' or 'file'"),
        ({"type": "user_message"}, "events.0.type: Input should be 'user.message', 'user.interrupt'"),
        ({"type": None}, "events.0.type: Field required"),
        ({"type": "user.define_outcome"}, "events.0: Outcomes are not supported"),
        ({"type": "user.tool_result"}, "events.0: user.tool_result is for self-hosted environments"),
        (
            {"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "perhaps"},
            "events.0.result: Input should be 'allow' or 'deny' (got 'perhaps')",
        ),
        (
            {"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow", "deny_message": "no"},
            "events.0.deny_message: Only allowed when result is 'deny'",
        ),
        ({"type": "user.interrupt", "reason": "x"}, "events.0.reason: Extra inputs are not permitted"),
        ({"type": "system.message", "content": [text("s")]}, "events.0: system.message should directly follow"),
    ],
)
def test_a_bad_event_is_refused_by_place_and_value(event: object, says: str) -> None:
    assert says in refused(EventsSend, sent(event)).message


def test_only_the_findings_about_the_meant_kind_are_told() -> None:
    assert refused(EventsSend, sent(message(text(5)))).message == (
        "events.0.content.0.text: Input should be a valid string (got 5)"
    )


def test_a_system_message_is_last_and_alone() -> None:
    system = {"type": "system.message", "content": [text("s")]}
    assert (
        "events.1: system.message should be the last"
        in refused(EventsSend, sent(message(text("a")), system, message(text("b")))).message
    )
    assert len(parse(EventsSend, json.dumps(sent(message(text("a")), system)).encode()).events) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"agent": {"id": "agent_1"}}, "agent.type: Field required"),
        ({"agent": {"type": "agent", "id": "agent_1", "version": 0}}, "agent.version: Input should be greater than"),
        ({"agent": {"type": "agent", "id": "agent_1", "model": "m"}}, "agent.model: Extra inputs are not permitted"),
        ({"vault_ids": ["vlt_1"] * 51}, "vault_ids: Array should have at most 50 items"),
        ({"vault_ids": [""]}, "vault_ids.0: String should have at least 1 character"),
        ({"budget": {"type": "limit"}}, "budget: Budgets are not supported"),
        ({"resources": [{"type": "memory_store"}]}, "resources.0: Memory stores are not supported"),
        (
            {"initial_events": [{"type": "user.interrupt"}]},
            "initial_events.0.type: Input should be 'user.message' (got",
        ),
        ({"initial_events": [message(text("a"))] * 51}, "initial_events: Array should have at most 50 items"),
        ({"resources": [{"type": "file", "file_id": "f", "mount_path": "a/../b"}]}, "resources.0.mount_path: Input"),
        ({"resources": [{"type": "file", "file_id": "f"}] * 2}, "resources.1.mount_path: resources.0 is mounted there"),
        (
            {
                "resources": [
                    {"type": "file", "file_id": "f", "mount_path": "/workspace/a"},
                    {"type": "file", "file_id": "f", "mount_path": "/workspace/a/b"},
                ]
            },
            "resources.0.mount_path: resources.1 needs a directory in the place of this file",
        ),
        (
            {"resources": [{"type": "file", "file_id": f"f{i}"} for i in range(501)]},
            "resources: Array should have at most 500",
        ),
    ],
)
def test_a_bad_session_is_refused_by_place_and_value(more: dict[str, object], says: str) -> None:
    assert says in refused(SessionCreate, {**SESSION, **more}).message


def test_at_most_a_hundred_documents_of_initial_events_come_from_files() -> None:
    document = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    error = refused(SessionCreate, {**SESSION, "initial_events": [message(*[document] * 101)]})
    assert error.message == "initial_events: At most 100 documents may come from files (got 101)"


def test_clearing_the_model_of_an_override_has_its_official_code() -> None:
    agent = {"type": "agent_with_overrides", "id": "agent_1", "model": None}
    error = refused(SessionCreate, {**SESSION, "agent": agent})
    assert error.message.startswith("agent.model: ")
    assert error.error_code == "agent_model_required"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"name": "n", "config": {"type": "self_hosted"}}, "config: Self-hosted environments are not supported"),
        ({"name": "n", "scope": "account"}, "scope: Only 'organization' is supported"),
        ({"name": "n", "config": {"type": "cloud", "packages": {"pip": ["x"]}}}, "config.packages.pip: Packages"),
        (networked(type="open"), "config.networking.type: Input should be 'unrestricted' or 'limited' (got 'open')"),
        (
            networked(type="limited", allowed_hosts=["a.example:80"]),
            "config.networking.allowed_hosts.0: Input should be",
        ),
    ],
)
def test_a_bad_environment_is_refused_by_place_and_value(request_: object, says: str) -> None:
    assert says in refused(EnvironmentCreate, request_).message


@pytest.mark.parametrize(
    ("model", "request_"),
    [(AgentUpdate, {"name": None}), (AgentUpdate, {"model": None}), (EnvironmentUpdate, {"metadata": None})],
)
def test_what_cannot_be_cleared_does_not_take_null(model: type[BaseModel], request_: object) -> None:
    assert "(got null)" in refused(model, request_).message


def test_the_vaults_of_a_session_cannot_be_named_in_an_update() -> None:
    assert refused(SessionUpdate, {"vault_ids": []}).message.startswith("vault_ids: ")


@pytest.mark.parametrize("raw", [b"", b"{", b"[1,]", b'{"name": "\xff"}'])
def test_what_is_not_json_is_refused_as_such(raw: bytes) -> None:
    assert refused(AgentCreate, raw).message.startswith("The request body is not valid JSON: ")


def test_an_array_is_not_a_request() -> None:
    assert refused(AgentCreate, b"[]").message == "Input should be an object (got [])"


def test_a_long_value_is_cut() -> None:
    assert len(refused(AgentCreate, {**AGENT, "name": ["x" * 10_000]}).message) < 200


def test_many_findings_are_counted() -> None:
    assert refused(AgentCreate, {**AGENT, **dict.fromkeys("abcdefgh", 1)}).message.endswith("; and 5 more")


@pytest.mark.parametrize(
    "extra",
    [{"authorization_token": "hunter2"}, {"api_key": "hunter2"}, {"callback": "https://me:hunter2@host/"}],
)
def test_what_may_be_a_secret_is_not_repeated(extra: dict[str, object]) -> None:
    assert "hunter2" not in refused(AgentCreate, {**AGENT, **extra}).message


@pytest.mark.parametrize(
    ("model", "fields", "says"),
    [
        (AgentQuery, {"limit": 101}, "limit: Input should be less than or equal to 100 (got 101)"),
        (SessionQuery, {"statuses": ("busy",)}, "statuses.0: Input should be 'rescheduling'"),
        (EventQuery, {"types": ("user.shout",)}, "types.0: Input should be 'user.message'"),
        (EventQuery, {"order": "up"}, "order: Input should be 'asc' or 'desc' (got 'up')"),
        (FileQuery, {"ids": ("file_1",), "limit": 5}, "ids: ids cannot be combined with limit or page"),
        (FileQuery, {"ids": tuple(f"file_{i}" for i in range(101))}, "ids: Array should have at most 100 items"),
        (ModelQuery, {"after_id": "a", "before_id": "b"}, "before_id: after_id and before_id cannot be combined"),
    ],
)
def test_a_bad_query_is_refused_by_name_and_value(model: type[BaseModel], fields: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        take(model, fields)
    assert says in caught.value.message


def test_a_property_may_be_called_ref() -> None:
    schema = {**SCHEMA, "properties": {"ref": {"enum": [{"$ref": "data, not schema"}]}}}
    parse(AgentCreate, json.dumps(tooled({**CUSTOM, "input_schema": schema})).encode())


def test_strings_are_shown_in_single_quotes_as_the_official_api_does() -> None:
    assert shown("a") == "'a'"
    assert shown(None) == "null"
    assert shown({"a": [1, True]}) == '{"a": [1, true]}'


def test_repeated_ids_count_once() -> None:
    assert FileQuery(ids=("file_1",) * 101).ids == ("file_1",)
