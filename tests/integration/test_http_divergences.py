"""Each deliberate departure from the official API that shows over HTTP, as `docs/divergences.md` lists them."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic._streaming import SSEDecoder

from tests.contract.sdk_server import Galley

pytest_plugins = ["tests.contract.galley_fixture"]
pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
AGENT = {"name": "a", "model": "scripted-1"}
ENVIRONMENT = {"name": "e"}
SESSION = {"agent": "agent_1", "environment_id": "env_1"}
POLICY = {"permission_policy": {"type": "auto"}}
RUBRIC = {"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "c"}}


@pytest.fixture
async def client(galley: Galley) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=galley.url, headers={"x-api-key": galley.key}, timeout=20) as client:
        yield client


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/agents",
        {**AGENT, "skills": [{"type": "custom", "skill_id": "skill_1"}]},
        "skills: Skills are not supported",
    ),
    ("/v1/agents", {**AGENT, "multiagent": {"type": "coordinator", "agents": []}}, "multiagent: Multiagent"),
    (
        "/v1/agents",
        {**AGENT, "tools": [{"type": "agent_toolset_20260401", "default_config": POLICY}]},
        "tools.0.default_config.permission_policy: The permission policy 'auto' is not supported",
    ),
    (
        "/v1/agents",
        {**AGENT, "execution_identity": {"type": "aws_role", "role_arn": "arn:aws:iam::1:role/x"}},
        "execution_identity: The execution identity 'aws_role' is not supported",
    ),
    (
        "/v1/sessions",
        {**SESSION, "budget": {"type": "limit", "max_list_cost": {"amount": "100", "currency": "USD"}}},
        "budget: Budgets are not supported",
    ),
    (
        "/v1/sessions",
        {**SESSION, "resources": [{"type": "github_repository", "url": "https://github.com/a/b"}]},
        "resources.0: Repositories are not supported",
    ),
    (
        "/v1/sessions",
        {**SESSION, "resources": [{"type": "memory_store", "memory_store_id": "memstore_1"}]},
        "resources.0: Memory stores are not supported",
    ),
    ("/v1/sessions", {**SESSION, "initial_events": [RUBRIC]}, "initial_events.0: Outcomes are not supported"),
    (
        "/v1/environments",
        {**ENVIRONMENT, "config": {"type": "self_hosted"}},
        "config: Self-hosted environments are not supported",
    ),
    (
        "/v1/environments",
        {**ENVIRONMENT, "config": {"type": "cloud", "packages": {"type": "packages", "pip": ["pandas"]}}},
        "config.packages.pip: Packages of an environment are not supported",
    ),
    ("/v1/environments", {**ENVIRONMENT, "scope": "account"}, "scope: Only 'organization' is supported"),
    ("/v1/sessions/sesn_1/events", {"events": [RUBRIC]}, "events.0: Outcomes are not supported"),
    (
        "/v1/sessions/sesn_1/events",
        {"events": [{"type": "user.tool_result", "tool_use_id": "sevt_1"}]},
        "events.0: user.tool_result is for self-hosted environments",
    ),
]


@pytest.mark.parametrize(("path", "body", "words"), REFUSED)
async def test_what_this_release_does_not_serve_is_refused_by_name(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], words: str
) -> None:
    answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert answer.json()["error"]["message"].startswith(words)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sessions/sesn_1/threads",
        "/v1/sessions/sesn_1/resources",
        "/v1/memory_stores",
        "/v1/skills",
        "/v1/deployments",
        "/v1/deployment_runs",
        "/v1/dreams",
        "/v1/environments/env_1/work",
        "/v1/organizations/webhooks",
        "/v1/user_profiles",
        "/v1/tunnels",
    ],
)
async def test_the_paths_of_later_releases_do_not_exist_yet(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"{path} is not a path of this server"


async def test_no_version_or_beta_header_is_wanted(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v1/agents")).status_code == 200
    odd = {"anthropic-version": "1999-01-01", "anthropic-beta": "nothing-1999-01-01", "anthropic-workspace-id": "x"}
    assert (await client.get("/v1/agents", headers=odd)).status_code == 200


async def test_there_is_no_rate_limit(client: httpx2.AsyncClient) -> None:
    statuses = {(await client.get("/v1/agents", params={"limit": 1})).status_code for _ in range(100)}
    assert statuses == {200}


async def played(client: httpx2.AsyncClient, agent: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """One turn of a new session; its events."""
    made = (await client.post("/v1/agents", json={**AGENT, **agent})).json()
    environment = (await client.post("/v1/environments", json={"name": str(uuid.uuid4())})).json()
    hello = {"type": "user.message", "content": [{"type": "text", "text": text}]}
    body = {"agent": made["id"], "environment_id": environment["id"], "initial_events": [hello]}
    path = f"/v1/sessions/{(await client.post('/v1/sessions', json=body)).json()['id']}/events"
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(10), client.stream("GET", f"{path}/stream?after_event_id=row_0") as answer:
        async for event in SSEDecoder().aiter_bytes(answer.aiter_bytes()):
            if event.event is not None:
                events.append(event.json())
            if event.event == "session.status_idle":
                break
    return events


async def test_without_a_vault_proxy_the_mcp_servers_of_an_agent_are_reported_as_not_reachable(
    client: httpx2.AsyncClient,
) -> None:
    agent = {
        "mcp_servers": [{"type": "url", "name": "docs", "url": "https://docs.example.com/mcp"}],
        "tools": [{"type": "mcp_toolset", "mcp_server_name": "docs"}],
    }
    events = await played(client, agent, "which tools")
    (error,) = (event["error"] for event in events if event["type"] == "session.error")
    assert (error["type"], error["mcp_server_name"]) == ("mcp_connection_failed_error", "docs")
    assert [event["content"][0]["text"] for event in events if event["type"] == "agent.message"] == ["no tools"]


async def test_the_web_tools_may_be_set_up_but_are_not_offered_to_the_model(client: httpx2.AsyncClient) -> None:
    configs = [{"name": name, "enabled": True} for name in ("bash", "web_search", "web_fetch")]
    toolset = {"type": "agent_toolset_20260401", "default_config": {"enabled": False}, "configs": configs}
    events = await played(client, {"tools": [toolset]}, "which tools")
    assert [event["content"][0]["text"] for event in events if event["type"] == "agent.message"] == ["bash"]


async def test_an_effort_that_was_not_chosen_stays_open(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/agents", json=AGENT)).json()["model"]["effort"] is None


async def test_there_are_no_prices(client: httpx2.AsyncClient) -> None:
    events = await played(client, {}, "hello")
    (usage,) = (event["usage"] for event in events if event["type"] == "session.usage")
    assert usage["output_tokens"] > 0
    assert "list_cost" not in usage


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "divergences.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def test_every_row_is_whole_and_names_a_test_that_exists() -> None:
    assert len(rows()) > 10
    for row in rows():
        assert len(row) == 5, row
        assert all(row), row
        for path, name in re.findall(r"`(tests/[^`]+\.(?:py|mjs))::([^`]+)`", row[4]) or [("", "")]:
            assert path, f"no test in {row}"
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
