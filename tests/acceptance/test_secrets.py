"""Planted keys are looked for wherever something of a session can end."""

import asyncio
from pathlib import Path

import anthropic
import pytest
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import call, say
from galley_server.demo.script import Script

from tests.acceptance.server_process import served

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

MODEL_KEY = "sk-planted-model-key-5f1d"
CLIENT_KEY = "planted-client-key-8c2e"
PRY = "env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline; true"


async def test_planted_keys_are_found_nowhere(tmp_path: Path) -> None:
    model = Script(call("bash", command=PRY), say("Nothing to be seen."))
    seen = b""
    async with (
        serve_scripted(model, api_key=MODEL_KEY) as url,
        served(
            tmp_path,
            GALLEY_MODEL_BASE_URL=url,
            GALLEY_MODEL_API_KEY=MODEL_KEY,
            GALLEY_API_KEY=CLIENT_KEY,
            GALLEY_LOG_LEVEL="debug",
        ) as server,
        anthropic.AsyncAnthropic(base_url=server.url, api_key=CLIENT_KEY) as client,
    ):
        agent = await client.beta.agents.create(
            name="spy", model="scripted-1", tools=[{"type": "agent_toolset_20260401"}]
        )
        environment = await client.beta.environments.create(name="plain")
        session = await client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
        async with asyncio.timeout(60), await client.beta.sessions.events.stream(session.id) as stream:
            await client.beta.sessions.events.send(
                session.id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Pry."}]}]
            )
            async for event in stream:
                seen += event.model_dump_json().encode()
                if event.type == "session.status_idle":
                    break
        assert b"Nothing to be seen." in seen
        await server.stop()
        seen += server.errors.encode()
    log_key, kept = kept_in(tmp_path)
    for secret in (MODEL_KEY.encode(), CLIENT_KEY.encode(), log_key):
        assert secret not in seen
        assert secret not in kept


def kept_in(home: Path) -> tuple[bytes, bytes]:
    """The key of the log, and every byte of the home but that key."""
    files = [path for path in home.rglob("*") if path.is_file()]
    others = b"".join(path.read_bytes() for path in files if path.name != "log_key")
    return (home / "log_key").read_bytes().strip(), others
