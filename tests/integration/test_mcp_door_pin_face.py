"""What a person may do about a definition that is held back."""

from pathlib import Path

import httpx2
import pytest
from galley_vault_proxy.admin.app import build_http
from galley_vault_proxy.mcp_door.pin_face import PinFace

from tests.integration.mcp_door_client import through
from tests.integration.mcp_door_kit import SERVICE_KEY, open_door
from tests.integration.mcp_door_upstream import ECHO, scripted

pytestmark = pytest.mark.anyio

DRIFTED = {**ECHO, "description": "Says what it is told, and more"}


async def test_after_a_look_a_person_lets_the_new_definition_be_pinned(tmp_path: Path) -> None:
    async with scripted() as up, open_door(tmp_path) as door, through(door, up) as client:
        app = build_http([PinFace(door.pins, door.audit)], key=SERVICE_KEY, audit=door.audit)
        operator = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://x", headers={"x-api-key": SERVICE_KEY.reveal()}
        )
        await client.send(client.message("tools/list"))
        up.tools[0] = dict(DRIFTED)
        held = await client.send(client.message("tools/list"))
        async with operator:
            shown = await operator.get("/v1/mcp_pins", params={"url": up.url})
            forgotten = await operator.delete("/v1/mcp_pins", params={"url": up.url, "tool": "echo"})
            nobody = await operator.get("/v1/mcp_pins", headers={"x-api-key": "wrong"}, params={"url": up.url})
            unknown = await operator.get("/v1/mcp_pins")
        listed = await client.send(client.message("tools/list"))
        called = await client.call("echo", {"text": "hi"})
        told = await door.lines(reason="definition_forgotten")

    assert "echo" not in held.text
    assert [pin["tool"] for pin in shown.json()["data"]] == ["delete_all", "echo"]
    assert shown.json()["data"][1]["definition"] == ECHO
    assert forgotten.json() == {"type": "mcp_pins_forgotten", "count": 1}
    assert (nobody.status_code, unknown.status_code) == (401, 400)
    assert "and more" in listed.text
    assert called.json()["result"]["content"][0]["text"] == "hi"
    assert told[0]["who"] == "service"
