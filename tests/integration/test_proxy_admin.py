"""The API under /v1: its answers, and what it says to requests that are wrong."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx2
import pytest
from galley_vault_proxy.grant.token import read

from tests.integration.proxy_kit import KEY, Spine, spine

pytestmark = pytest.mark.anyio

WHOLE = {
    "session_id": "sesn_1",
    "thread_id": "sthr_1",
    "vault_ids": ["vlt_1", "vlt_2", "vlt_1"],
    "mcp_servers": [
        {"name": "github", "url": "https://mcp.example/v1?team=a", "tools": ["list", "get"]},
        {"name": "My server", "url": "http://localhost:9000/sse"},
    ],
    "hosts": [
        {"host": "API.Example.com", "ports": [443], "methods": ["get"], "paths": ["/repos"]},
        {"host": "*.example.org"},
    ],
    "presets": ["package_managers"],
    "network": "limited",
    "tunnel": "tun_1",
    "expires_in": 600,
}


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Spine]:
    async with spine(tmp_path_factory.mktemp("admin")) as opened:
        yield opened


async def refusal(running: Spine, body: object) -> str:
    async with running.client() as client:
        answer = await client.post("/v1/grants", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"
    return str(error["message"])


def with_(**changed: Any) -> dict[str, Any]:
    return {**WHOLE, **changed}


async def test_a_grant_holds_what_was_asked_for(running: Spine) -> None:
    async with running.client() as client:
        answer = (await client.post("/v1/grants", json=WHOLE)).json()
    assert answer.keys() == {"type", "id", "token", "session_id", "thread_id", "expires_at"}
    grant = read(answer["token"])
    assert grant.id == answer["id"]
    assert grant.vault_ids == ("vlt_1", "vlt_2")
    assert [rule.name for rule in grant.servers] == ["github", "My server"]
    assert (grant.hosts[0].host, grant.hosts[0].methods) == ("api.example.com", ("GET",))
    assert (grant.tunnel, grant.presets, grant.network) == ("tun_1", ("package_managers",), "limited")
    assert grant.expires_at == datetime.fromisoformat(answer["expires_at"])


async def test_the_smallest_request_makes_a_grant_of_nothing(running: Spine) -> None:
    async with running.client() as client:
        answer = (await client.post("/v1/grants", json={"session_id": "s", "expires_in": 1})).json()
    grant = read(answer["token"])
    assert (grant.servers, grant.hosts, grant.network, grant.tunnel) == ((), (), "limited", None)


async def test_a_token_is_shown_once(running: Spine) -> None:
    async with running.client() as client:
        made = await client.post("/v1/grants", json=WHOLE)
        shown = await client.get(f"/v1/grants/{made.json()['id']}")
    assert made.headers["cache-control"] == "no-store"
    assert "token" not in shown.json()
    assert shown.json()["status"] == "live"


async def test_a_revoked_grant_says_since_when(running: Spine) -> None:
    async with running.client() as client:
        made = (await client.post("/v1/grants", json=WHOLE)).json()
        gone = await client.delete(f"/v1/grants/{made['id']}")
        shown = (await client.get(f"/v1/grants/{made['id']}")).json()
    assert gone.json() == {"type": "grant_revoked", "id": made["id"]}
    assert shown["status"] == "revoked"
    assert shown["revoked_at"]


async def test_ending_a_session_tells_what_it_did(running: Spine) -> None:
    async with running.client() as client:
        for _ in range(2):
            await client.post("/v1/grants", json=with_(session_id="sesn_end"))
        gone = await client.delete("/v1/sessions/sesn_end")
        again = await client.delete("/v1/sessions/sesn_end")
    assert gone.json() == {"type": "session_revoked", "id": "sesn_end", "revoked_grants": 2, "leases": "revoked"}
    assert again.json()["revoked_grants"] == 0


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "not a JSON object"),
        ({}, "session_id: Field required; expires_in: Field required"),
        (with_(expires=60), "expires: Unknown field"),
        (with_(expires_in=0), "expires_in: Input should be greater than or equal to 1"),
        (with_(expires_in=10**9), "expires_in: Input should be less than or equal to"),
        (with_(expires_in="60"), "expires_in: Input should be a valid integer"),
        (with_(expires_in=1.5), "expires_in"),
        (with_(expires_in=True), "expires_in"),
        (with_(session_id=""), "session_id"),
        (with_(session_id="a b"), "session_id"),
        (with_(session_id="a\n"), "session_id"),
        (with_(session_id="x" * 129), "session_id"),
        (with_(session_id=None), "session_id: Input should be a valid string"),
        (with_(vault_ids="vlt_1"), "vault_ids: Input should be a valid array"),
        (with_(vault_ids=["../x"]), "vault_ids.0"),
        (with_(vault_ids=["v"] * 51), "vault_ids: Array should have at most 50 items"),
        (with_(tunnel="a b"), "tunnel"),
        (with_(network="open"), "network: Input should be 'limited' or 'unrestricted'"),
        (with_(presets=["everything"]), "presets.0: Input should be 'package_managers' or 'mcp_servers'"),
        (with_(mcp_servers=[{"name": "a"}]), "mcp_servers.0.url: Field required"),
        (with_(mcp_servers=[{"name": "a", "url": "https://a.example", "tool": []}]), "mcp_servers.0.tool: Unknown"),
        (with_(mcp_servers=[{"name": "a/b", "url": "https://a.example"}]), "mcp_servers.0.name: Use printable"),
        (with_(mcp_servers=[{"name": "..", "url": "https://a.example"}]), "mcp_servers.0.name"),
        (with_(mcp_servers=[{"name": "", "url": "https://a.example"}]), "mcp_servers.0.name"),
        (with_(mcp_servers=[{"name": "a", "url": "ftp://a.example"}]), "mcp_servers.0.url"),
        (with_(mcp_servers=[{"name": "a", "url": "https://u:p@a.example"}]), "mcp_servers.0.url"),
        (with_(mcp_servers=[{"name": "a", "url": "https://a.example/#x"}]), "mcp_servers.0.url"),
        (with_(mcp_servers=[{"name": "a", "url": "https://a.example/a b"}]), "mcp_servers.0.url"),
        (with_(mcp_servers=[{"name": "a", "url": "https://a.example:99999"}]), "mcp_servers.0.url"),
        (with_(mcp_servers=[{"name": "a", "url": "https:///x"}]), "mcp_servers.0.url"),
        (with_(mcp_servers=[{"name": "a", "url": "stdio:../x"}]), "mcp_servers.0.url: Write stdio:NAME"),
        (with_(mcp_servers=[{"name": "a", "url": "stdio:none"}]), "mcp_servers.0.url: this proxy runs no stdio server"),
        (with_(mcp_servers=[{"name": "a", "url": "https://a.example"}] * 2), "mcp_servers.1.name: Each server has"),
        (with_(hosts=[{"host": "https://a.example"}]), "hosts.0.host: Give a host name"),
        (with_(hosts=[{"host": "a.example:443"}]), "hosts.0.host"),
        (with_(hosts=[{"host": "*"}]), "hosts.0.host"),
        (with_(hosts=[{"host": "a.example", "ports": [0]}]), "hosts.0.ports.0"),
        (with_(hosts=[{"host": "a.example", "ports": []}]), "hosts.0.ports"),
        (with_(hosts=[{"host": "a.example", "methods": ["GET", "G T"]}]), "hosts.0.methods.1: Give an HTTP method"),
        (with_(hosts=[{"host": "a.example", "paths": ["repos"]}]), "hosts.0.paths.0: Give the beginning of a path"),
        (with_(hosts=[{"host": "a.example", "paths": ["/a?b"]}]), "hosts.0.paths.0"),
        (
            with_(
                mcp_servers=[
                    {"name": "a", "url": "https://a.example", "tools": ["t" * 200 + f"{n}" for n in range(99)]}
                ]
            ),
            "too large for a token",
        ),
    ],
)
async def test_a_wrong_body_is_refused_by_the_field(running: Spine, body: object, named: str) -> None:
    assert named in await refusal(running, body)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1 column 2"),
        (b"\xff", "not UTF-8"),
        (b'{"session_id": NaN}', "NaN is not a JSON number"),
        (b'{"session_id":"a","session_id":"b"}', "a key appears twice"),
        (b"[" * 1000 + b"]" * 1000, "nested more than"),
        (b'{"session_id":"\\ud800","expires_in":1}', "not valid JSON"),
        (b'{"session_id":"a","expires_in":' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
async def test_a_body_that_is_no_strict_json_is_refused(running: Spine, raw: bytes, named: str) -> None:
    async with running.client() as client:
        answer = await client.post("/v1/grants", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


async def test_a_value_is_never_repeated(running: Spine) -> None:
    """A secret may stand in the wrong field, or under a name that was mistyped."""
    canary = "canary-5f2c"
    bodies: list[object] = [
        with_(session_id=f"{canary} {canary}"),
        with_(vault_ids=[canary + "/"]),
        with_(secret=canary),
        with_(mcp_servers=[{"name": "a", "url": f"https://user:{canary}@a.example"}]),
        with_(hosts=[{"host": canary + "/"}]),
        with_(network=canary),
        canary,
    ]
    for body in bodies:
        assert canary not in await refusal(running, body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/grants", 405),
        ("PUT", "/v1/grants/grant_1", 405),
        ("GET", "/v1/sessions/sesn_1", 405),
        ("GET", "/v1/grants/grant_1", 404),
        ("DELETE", "/v1/grants/grant_1", 404),
        ("DELETE", "/v1/sessions/a b", 400),
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v1/grants/", 404),
        ("GET", "/v1/grants/grant_1?x=1", 400),
    ],
)
async def test_other_requests_have_their_status(running: Spine, method: str, path: str, status: int) -> None:
    async with running.client() as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["request_id"] == answer.headers["request-id"]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(running: Spine) -> None:
    async with running.client() as client:
        answer = await client.post("/v1/grants", content=b" " * (1 << 20) + b"{}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    async with running.client() as client:
        answer = await client.post(
            "/v1/grants", content=b" " * (1 << 20) + b"{}", headers={"content-type": "application/json"}
        )
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY, "authorization": "Bearer for-another-server"},
    ],
)
async def test_the_key_comes_in_either_header(running: Spine, headers: dict[str, str]) -> None:
    async with httpx2.AsyncClient(base_url=running.address.url) as client:
        assert (await client.get("/v1/grants/x", headers=headers)).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": KEY + "x"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"cookie": f"x-api-key={KEY}"},
    ],
)
async def test_without_the_key_nothing_is_told(running: Spine, headers: dict[str, str]) -> None:
    async with httpx2.AsyncClient(base_url=running.address.url) as client:
        for path in ("/v1/grants/x", "/v1/nothing", "/anything"):
            answer = await client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


async def test_a_grant_is_no_service_key(running: Spine) -> None:
    token = await running.issue()
    async with running.client(token) as client:
        assert (await client.post("/v1/grants", json=WHOLE)).status_code == 401


async def test_the_audit_log_is_read_in_pages(running: Spine) -> None:
    async with running.client() as client:
        for number in range(5):
            await client.post("/v1/grants", json={"session_id": f"sesn_page_{number % 2}", "expires_in": 60})
        first = (await client.get("/v1/audit", params={"session_id": "sesn_page_0", "limit": 2})).json()
        rest = (
            await client.get("/v1/audit", params={"session_id": "sesn_page_0", "after": first["next_after"]})
        ).json()
    assert (len(first["data"]), first["has_more"]) == (2, True)
    assert (len(rest["data"]), rest["has_more"]) == (1, False)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit: not a whole number"),
        ("limit=1&limit=2", "limit: given more than once"),
        ("decision=maybe", "decision: Input should be 'allow' or 'deny'"),
        ("after=x", "after"),
        ("session=x", "session: unknown query parameter; this call takes after, decision"),
    ],
)
async def test_a_wrong_query_is_refused_by_the_parameter(running: Spine, query: str, named: str) -> None:
    async with running.client() as client:
        answer = await client.get(f"/v1/audit?{query}")
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
