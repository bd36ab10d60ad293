"""Nothing a request does may block the event loop: every other session waits for it meanwhile."""

import asyncio
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from tests.contract.sdk_driver import Driver, connect
from tests.contract.sdk_server import running_galley

pytestmark = pytest.mark.anyio


async def a_whole_session(sdk: Driver) -> None:
    file = await sdk.beta.files.upload(file=("a.csv", b"a,b\n" * 100_000, "text/csv"))
    assert len(await (await sdk.beta.files.download(file.id)).read()) == 400_000
    agent = await sdk.beta.agents.create(name="a", model="scripted-1")
    environment = await sdk.beta.environments.create(name=f"of {agent.id}")
    session = await sdk.beta.sessions.create(
        agent=agent.id, environment_id=environment.id, resources=[{"type": "file", "file_id": file.id}]
    )
    stream = await sdk.beta.sessions.events.stream(session.id, event_deltas=["agent.message"])
    hello = {"type": "user.message", "content": [{"type": "text", "text": "hello " * 50_000}]}
    await sdk.beta.sessions.events.send(session.id, events=[hello])
    assert "agent.message" in [event.type for event in await sdk.until(stream, "session.status_idle")]
    assert await sdk.all(sdk.beta.sessions.events.list, session.id, limit=2)
    assert await sdk.all(sdk.beta.models.list)
    await sdk.beta.sessions.delete(session.id)
    await sdk.beta.files.delete(file.id)


async def test_a_whole_session_blocks_nothing(tmp_path: Path) -> None:
    async with asyncio.timeout(30), running_galley(tmp_path) as galley:
        sdk = connect("async", url=galley.url, key=galley.key)
        # Once before: what libraries import and read at their first use is not what is asked about.
        await a_whole_session(sdk)
        with blockbuster_ctx("galley_server"):
            await a_whole_session(sdk)
        await sdk.client.close()
        sdk.check()
