"""Bad input of every kind, against a running server: the status, the envelope, and the words that name the fault."""

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.contract.sdk_server import Galley

pytest_plugins = ["tests.contract.galley_fixture"]
pytestmark = pytest.mark.anyio

MEBIBYTE = 1 << 20
WEATHER = {"type": "custom", "name": "weather", "description": "x", "input_schema": {"type": "object"}}


@dataclass(frozen=True)
class Known:
    """Ids of things that exist, to be filled into paths and bodies as `{agent}` and so on."""

    agent: str
    environment: str
    session: str
    file: str

    def fill(self, value: Any) -> Any:
        text = json.dumps(value)
        for name in ("agent", "environment", "session", "file"):
            text = text.replace("{" + name + "}", getattr(self, name))
        return json.loads(text)


@pytest.fixture
async def client(galley: Galley) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=galley.url, headers={"x-api-key": galley.key}, timeout=20) as client:
        yield client


@pytest.fixture
async def known(client: httpx2.AsyncClient) -> Known:
    async def made(path: str, body: dict[str, Any]) -> str:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    agent = await made("/v1/agents", {"name": "a", "model": "scripted-1", "tools": [WEATHER]})
    environment = await made("/v1/environments", {"name": str(uuid.uuid4())})
    session = await made("/v1/sessions", {"agent": agent, "environment_id": environment})
    upload = await client.post("/v1/files", files={"file": ("a.txt", b"hello", "text/plain")})
    return Known(agent, environment, session, upload.json()["id"])


def refused(answer: httpx2.Response, status: int, kind: str, words: str) -> None:
    """The whole of what a refusal must be."""
    assert answer.status_code == status, answer.text
    envelope = answer.json()
    assert set(envelope) == {"type", "error", "request_id"}
    assert (envelope["type"], envelope["error"]["type"]) == ("error", kind)
    assert words in envelope["error"]["message"], envelope["error"]["message"]
    assert envelope["request_id"] == answer.headers["request-id"]
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["content-type"] == "application/json"


AGENTS: list[tuple[Any, str]] = [
    ({"model": "m"}, "name: Field required"),
    ({"name": "a"}, "model: Field required"),
    ({"name": "", "model": "m"}, "name: "),
    ({"name": "x" * 257, "model": "m"}, "name: String should have at most 256 characters"),
    ({"name": "a", "model": "m", "system": "x" * 100_001}, "system: String should have at most 100000 characters"),
    ({"name": "a", "model": "m", "description": "x" * 2049}, "description: "),
    ({"name": "a", "model": 5}, "model: "),
    ({"name": "a", "model": {"id": "m", "effort": "extreme"}}, "model.effort"),
    ({"name": "a", "model": "m", "nmae": "b"}, "nmae: "),
    ({"name": "a", "model": "m", "tools": {}}, "tools: Input should be a valid array"),
    ({"name": "a", "model": "m", "tools": ["bash"]}, "tools.0: "),
    ({"name": "a", "model": "m", "tools": [{"type": "bash"}]}, "tools.0.type: "),
    ({"name": "a", "model": "m", "tools": [{**WEATHER, "name": "bad name"}]}, "tools.0.name: "),
    ({"name": "a", "model": "m", "tools": [WEATHER, WEATHER]}, "tools.1.name: "),
    ({"name": "a", "model": "m", "tools": [{**WEATHER, "input_schema": {"type": "array"}}]}, "tools.0.input_schema"),
    ({"name": "a", "model": "m", "tools": [{"type": "agent_toolset_20260401", "configs": [{"name": "ls"}]}]}, "ls"),
    ({"name": "a", "model": "m", "tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, "mcp_server_name"),
    ({"name": "a", "model": "m", "mcp_servers": [{"type": "url", "name": "x", "url": "ftp://x"}]}, "mcp_servers.0.url"),
    ({"name": "a", "model": "m", "metadata": {str(n): "" for n in range(17)}}, "metadata: "),
    ({"name": "a", "model": "m", "metadata": {"k" * 65: "v"}}, "metadata"),
    ({"name": "a", "model": "m", "metadata": {"k": "v" * 513}}, "metadata"),
    ({"name": "a", "model": "m", "metadata": {"k": 1}}, "metadata.k: Input should be a valid string"),
]


@pytest.mark.parametrize(("body", "words"), AGENTS)
async def test_an_agent_that_is_none_is_refused(client: httpx2.AsyncClient, body: Any, words: str) -> None:
    refused(await client.post("/v1/agents", json=body), 400, "invalid_request_error", words)


SESSIONS: list[tuple[Any, int, str]] = [
    ({}, 400, "agent: Field required"),
    ({"agent": "{agent}"}, 400, "environment_id: Field required"),
    ({"agent": "agent_none", "environment_id": "{environment}"}, 404, "agent_none"),
    ({"agent": "{agent}", "environment_id": "env_none"}, 404, "env_none"),
    ({"agent": {"type": "agent", "id": "{agent}", "version": 9}, "environment_id": "{environment}"}, 404, "version 9"),
    (
        {"agent": {"type": "agent", "id": "{agent}", "version": 0}, "environment_id": "{environment}"},
        400,
        "agent.version",
    ),
    ({"agent": {"type": "agnet", "id": "{agent}"}, "environment_id": "{environment}"}, 400, "agent.type: "),
    (
        {"agent": {"type": "agent_with_overrides", "id": "{agent}", "model": None}, "environment_id": "{environment}"},
        400,
        "agent.model",
    ),
    ({"agent": "{agent}", "environment_id": "{environment}", "title": 5}, 400, "title: Input should be a valid string"),
    ({"agent": "{agent}", "environment_id": "{environment}", "agent_id": "x"}, 400, "agent_id: "),
    (
        {"agent": "{agent}", "environment_id": "{environment}", "initial_events": [{"type": "user.interrupt"}]},
        400,
        "initial_events.0.type: ",
    ),
    (
        {
            "agent": "{agent}",
            "environment_id": "{environment}",
            "resources": [{"type": "file", "file_id": "file_none"}],
        },
        404,
        "resources.0.file_id: ",
    ),
    (
        {
            "agent": "{agent}",
            "environment_id": "{environment}",
            "resources": [{"type": "file", "file_id": "{file}", "mount_path": "/workspace/../etc/passwd"}],
        },
        400,
        "resources.0.mount_path: ",
    ),
]


@pytest.mark.parametrize(("body", "status", "words"), SESSIONS)
async def test_a_session_that_is_none_is_refused(
    client: httpx2.AsyncClient, known: Known, body: Any, status: int, words: str
) -> None:
    kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
    refused(await client.post("/v1/sessions", json=known.fill(body)), status, kind, words)


SENT: list[tuple[Any, str]] = [
    ([], "events: "),
    (["hello"], "events.0: "),
    ([{"content": []}], "events.0.type: Field required"),
    ([{"type": "user.mesage"}], "events.0.type: Input should be"),
    ([{"type": "agent.message", "content": []}], "events.0.type: "),
    ([{"type": "user.message"}], "events.0.content: Field required"),
    ([{"type": "user.message", "content": "hello"}], "events.0.content: Input should be a valid array"),
    ([{"type": "user.message", "content": []}], "events.0.content: "),
    ([{"type": "user.message", "content": [{"type": "text", "text": " "}]}], "events.0.content.0.text: "),
    ([{"type": "user.message", "content": [{"type": "text", "text": 5}]}], "events.0.content.0.text: "),
    ([{"type": "user.message", "content": [{"type": "video"}]}], "events.0.content.0.type: "),
    ([{"type": "user.message", "content": [{"type": "redacted"}]}], "events.0.content.0"),
    ([{"type": "user.message", "id": "sevt_1", "content": [{"type": "text", "text": "x"}]}], "events.0.id: "),
    (
        [{"type": "user.interrupt"}, {"type": "user.message", "content": [{"type": "text", "txet": "x"}]}],
        "events.1.content.0.text: Field required",
    ),
    (
        [
            {
                "type": "user.message",
                "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "!"}}],
            }
        ],
        "events.0.content.0.source.data: ",
    ),
    ([{"type": "user.tool_confirmation", "tool_use_id": "sevt_none", "result": "allow"}], "sevt_none"),
    ([{"type": "user.tool_confirmation", "tool_use_id": "sevt_none", "result": "maybe"}], "events.0.result: "),
    ([{"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_none"}], "sevt_none"),
    ([{"type": "system.message", "content": [{"type": "text", "text": "x"}]}], "system.message"),
]


@pytest.mark.parametrize(("events", "words"), SENT)
async def test_an_event_that_is_none_is_refused_whole(
    client: httpx2.AsyncClient, known: Known, events: Any, words: str
) -> None:
    path = f"/v1/sessions/{known.session}/events"
    answer = await client.post(path, json={"events": events})
    assert answer.status_code in (400, 404), answer.text
    refused(answer, answer.status_code, answer.json()["error"]["type"], words)
    assert (await client.get(path)).json()["data"] == []


QUERIES: list[tuple[str, str]] = [
    ("/v1/agents?limit=0", "limit: "),
    ("/v1/agents?limit=101", "limit: "),
    ("/v1/agents?limit=ten", "limit: 'ten' is not a whole number"),
    ("/v1/agents?page=garbage", "page: "),
    ("/v1/agents?page=page_bm9wZQ", "page: "),
    ("/v1/agents?created_at[gt]=2026-01-01T00:00:00Z", "created_at[gt]"),
    ("/v1/agents?include_archived=yes", "include_archived: "),
    ("/v1/agents/{agent}?version=0", "version: "),
    ("/v1/agents/{agent}?version=1&version=2", "version: given more than once"),
    ("/v1/agents/{agent}/versions?page=garbage", "page: "),
    ("/v1/environments?order=asc", "order"),
    ("/v1/sessions?statuses[]=sleeping", "statuses.0: "),
    ("/v1/sessions?statuses=idle", "write statuses[]"),
    ("/v1/sessions?order=up", "order: "),
    ("/v1/sessions?created_at[gte]=yesterday", "created_at[gte]: "),
    ("/v1/sessions?agent=x", "agent"),
    ("/v1/sessions/{session}/events?types[]=user.mesage", "types.0: "),
    ("/v1/sessions/{session}/events?limit=100000", "limit: "),
    ("/v1/sessions/{session}/events?page=garbage", "page: "),
    ("/v1/sessions/{session}/events?stream=true", "stream"),
    ("/v1/sessions/{session}/events/stream?event_deltas[]=agent.tool_use", "event_deltas.0: "),
    ("/v1/sessions/{session}/events/stream?event_deltas=agent.message", "write event_deltas[]"),
    ("/v1/sessions/{session}/events/stream?" + "&".join(["event_deltas[]=agent.message"] * 101), "event_deltas: "),
    ("/v1/files?ids[]={file}&limit=5", "ids: "),
    ("/v1/files?limit=1001", "limit: "),
    ("/v1/models?after_id=a&before_id=b", "before_id: "),
    ("/v1/models?lifecycle[]=dead", "lifecycle.0: "),
]


@pytest.mark.parametrize(("path", "words"), QUERIES)
async def test_a_query_that_is_none_is_refused_by_name(
    client: httpx2.AsyncClient, known: Known, path: str, words: str
) -> None:
    refused(await client.get(known.fill(path)), 400, "invalid_request_error", words)


UNKNOWN: list[tuple[str, str]] = [
    ("GET", "/v1/agents/agent_none"),
    ("POST", "/v1/agents/agent_none/archive"),
    ("GET", "/v1/agents/agent_none/versions"),
    ("GET", "/v1/environments/env_none"),
    ("DELETE", "/v1/environments/env_none"),
    ("POST", "/v1/environments/env_none/archive"),
    ("GET", "/v1/sessions/sesn_none"),
    ("DELETE", "/v1/sessions/sesn_none"),
    ("POST", "/v1/sessions/sesn_none/archive"),
    ("GET", "/v1/sessions/sesn_none/events"),
    ("GET", "/v1/sessions/sesn_none/events/stream"),
    ("GET", "/v1/sessions/sesn_none/events/stream?after_event_id=row_0"),
    ("GET", "/v1/files/file_none"),
    ("GET", "/v1/files/file_none/content"),
    ("DELETE", "/v1/files/file_none"),
    ("GET", "/v1/models/model_none"),
    ("GET", "/v1/sessions/{agent}"),
    ("GET", "/v1/agents/%00"),
    ("GET", "/v1/agents/%ff"),
    ("GET", "/v1/agents/a%2Fb"),
    ("GET", "/v1/agents/" + "x" * 5000),
    ("GET", "/v1/sessions/'%20OR%201=1"),
    ("GET", "/v1/nothing"),
    ("GET", "/v2/agents"),
    ("GET", "/v1/agents/"),
    ("GET", "/"),
    ("GET", "//v1/agents"),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
async def test_what_does_not_exist_is_not_found(
    client: httpx2.AsyncClient, known: Known, method: str, path: str
) -> None:
    refused(await client.request(method, known.fill(path)), 404, "not_found_error", "")


@pytest.mark.parametrize("cursor", ["row_x", "row_-1", "row_999", "row_99999999999", "sevt_none", "nonsense", "row_1 "])
async def test_a_cursor_the_session_does_not_have_is_refused(
    client: httpx2.AsyncClient, known: Known, cursor: str
) -> None:
    path = f"/v1/sessions/{known.session}/events"
    for answer in (
        await client.get(path, params={"after_event_id": cursor}),
        await client.get(f"{path}/stream", params={"after_event_id": cursor}),
        await client.get(f"{path}/stream", headers={"last-event-id": cursor.strip() + "x"}),
    ):
        assert answer.status_code in (400, 404), answer.text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"name":NaN}', b'{"name":"a","name":"b"}', b"\xff\xfe", b"[" * 100_000]
)
async def test_a_body_that_is_no_json_object_is_refused(client: httpx2.AsyncClient, content: bytes) -> None:
    answer = await client.post("/v1/agents", content=content, headers={"content-type": "application/json"})
    refused(answer, 400, "invalid_request_error", "body")


async def test_a_body_over_the_limit_is_refused_and_the_connection_lives_on(client: httpx2.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield b" " * MEBIBYTE

    headers = {"content-type": "application/json"}
    for content in (b" " * (32 * MEBIBYTE + 1), endless()):
        refused(await client.post("/v1/agents", content=content, headers=headers), 413, "request_too_large", "32 MB")
    assert (await client.get("/v1/agents")).status_code == 200


async def test_a_body_just_under_the_limit_is_read_without_holding_up_others(client: httpx2.AsyncClient) -> None:
    body = json.dumps({"name": "a", "model": "m", "x": "y" * (32 * MEBIBYTE - 100)})
    answer = await client.post("/v1/agents", content=body, headers={"content-type": "application/json"})
    refused(answer, 400, "invalid_request_error", "x: ")


UPLOADS: list[tuple[dict[str, Any], str]] = [
    ({"json": {"file": "x"}}, "content-type: application/json; send multipart/form-data"),
    ({"files": {"flie": ("a.txt", b"x")}}, "flie: unknown field"),
    ({"files": [("file", ("a", b"x")), ("file", ("b", b"y"))]}, "file: given more than once"),
    ({"files": {"file": ("a.txt", b"x")}, "data": {"expires_in_seconds": "60"}}, "expires_in_seconds: "),
    ({"files": {"file": ("a.txt", b"x")}, "data": {"expires_in_seconds": "soon"}}, "expires_in_seconds: "),
    ({"files": {"expires_in_seconds": (None, b"3600")}}, "file: Field required"),
    ({"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "boundary"),
    ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
]


@pytest.mark.parametrize(("request_parts", "words"), UPLOADS)
async def test_an_upload_that_is_none_is_refused(
    client: httpx2.AsyncClient, request_parts: dict[str, Any], words: str
) -> None:
    refused(await client.post("/v1/files", **request_parts), 400, "invalid_request_error", words)


STATES: list[tuple[list[tuple[str, str, Any]], int, str]] = [
    (
        [("POST", "/v1/agents/{agent}/archive", None), ("POST", "/v1/agents/{agent}", {"name": "b"})],
        400,
        "archived",
    ),
    (
        [
            ("POST", "/v1/agents/{agent}/archive", None),
            ("POST", "/v1/sessions", {"agent": "{agent}", "environment_id": "{environment}"}),
        ],
        400,
        "archived",
    ),
    (
        [
            ("POST", "/v1/environments/{environment}/archive", None),
            ("POST", "/v1/environments/{environment}", {"description": "b"}),
        ],
        400,
        "archived",
    ),
    (
        [
            ("POST", "/v1/sessions/{session}/archive", None),
            ("POST", "/v1/sessions/{session}/events", {"events": [{"type": "user.interrupt"}]}),
        ],
        400,
        "archived",
    ),
]


@pytest.mark.parametrize(("steps", "status", "words"), STATES)
async def test_what_its_state_forbids_is_refused(
    client: httpx2.AsyncClient, known: Known, steps: list[tuple[str, str, Any]], status: int, words: str
) -> None:
    for method, path, body in steps:
        answer = await client.request(method, known.fill(path), json=known.fill(body))
    refused(answer, status, "invalid_request_error", words)
