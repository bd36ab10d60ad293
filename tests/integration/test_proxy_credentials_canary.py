"""Planted secrets of every type are found in no log line, no error, no answer, no file but the sealed store's."""

import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.proxy_credentials_kit import Broker, broker, everything_below
from tests.integration.proxy_oauth_server import Client, Servers, servers

pytestmark = pytest.mark.anyio

CANARIES = {
    name: f"canary/{name}+{'xyzzy' * 4}"
    for name in ("token", "token2", "access", "access2", "refresh", "refresh2", "client", "client2", "value", "value2")
}


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path / "home") as opened:
        yield opened


def bodies(found: Servers) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Creates, and what is sent to update them."""
    c = CANARIES
    endpoint_auth = {"type": "client_secret_post", "client_secret": c["client"]}
    refresh = {
        "client_id": "client-1",
        "refresh_token": c["refresh"],
        "token_endpoint": f"{found.auth.base}/token",
        "token_endpoint_auth": endpoint_auth,
    }
    oauth = {"type": "mcp_oauth", "mcp_server_url": found.mcp.url, "access_token": c["access"], "refresh": refresh}
    variable = {
        "type": "environment_variable",
        "secret_name": "KEY",
        "secret_value": c["value"],
        "networking": {"type": "unrestricted"},
    }
    bearer = {"type": "static_bearer", "mcp_server_url": "https://mcp.example.com", "token": c["token"]}
    return [
        (
            oauth,
            {
                "type": "mcp_oauth",
                "access_token": c["access2"],
                "refresh": {
                    "refresh_token": c["refresh2"],
                    "token_endpoint_auth": {**endpoint_auth, "client_secret": c["client2"]},
                },
            },
        ),
        (bearer, {"type": "static_bearer", "token": c["token2"]}),
        (variable, {"type": "environment_variable", "secret_value": c["value2"]}),
    ]


def spoiled(body: dict[str, Any]) -> list[Any]:
    """Bodies that are refused, with secrets in every place of them."""
    auth = body["auth"]
    return [
        {**body, "extra": auth},
        {"auth": json.dumps(auth)},
        {"auth": {**auth, "surplus": CANARIES["token"]}},
        {"auth": {**auth, "token": [CANARIES["token"]], "access_token": {"x": CANARIES["access"]}}},
        {"auth": {**auth, "secret_value": 5, "secret_name": None}},
        [auth],
    ]


def forms(secret: str) -> list[bytes]:
    raw = secret.encode()
    inner = [base64.b64encode(b"\0" * before + raw)[4:-4] for before in range(3)]
    return [raw, raw.hex().encode(), quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), *inner]


async def test_a_planted_secret_is_found_nowhere(proxy: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with servers() as found, proxy.http() as client:
        found.auth.add(Client("client-1", [], "client_secret_post", "another"), access="x", refresh="y")
        vault_id = (await client.post("/v1/vaults", json={"display_name": "Alice"})).json()["id"]
        path = f"/v1/vaults/{vault_id}/credentials"
        for number, (auth, update) in enumerate(bodies(found)):
            made = await client.post(path, json={"auth": auth}, headers={"idempotency-key": f"c{number}"})
            again = await client.post(path, json={"auth": auth}, headers={"idempotency-key": f"c{number}"})
            other = await client.post(path, json={"auth": update}, headers={"idempotency-key": f"c{number}"})
            credential = f"{path}/{made.json()['id']}"
            answers = [made, again, other]
            for wrong in spoiled({"auth": auth}):
                answers.append(await client.post(path, json=wrong))
                answers.append(await client.post(credential, json=wrong))
            answers.append(await client.post(path, content=json.dumps({"auth": auth})[:-3], headers=JSON))
            answers.append(await client.post(path, json={"auth": auth}))  # a duplicate
            answers.append(await client.post(f"{credential}/mcp_oauth_validate"))
            answers.append(
                await client.post(credential, json={"auth": update}, headers={"idempotency-key": f"u{number}"})
            )
            answers.append(await client.post(f"{credential}/mcp_oauth_validate"))
            answers.append(await client.get(credential))
            said += [answer.text for answer in answers]
            assert made.status_code == 200
            assert {answer.status_code for answer in answers} <= {200, 400, 409}
        said.append((await client.get(path)).text)
        await proxy.audit.flush()
        everything = everything_below(proxy.home) + "".join(said).encode() + caplog.text.encode()
        # The authorization server was sent them, so the search does find what is there.
        assert CANARIES["client"] in json.dumps(found.auth.token_requests)
        for name, secret in CANARIES.items():
            for form in forms(secret):
                assert form not in everything, (name, form)


JSON = {"content-type": "application/json"}
