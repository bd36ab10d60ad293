"""A whole Galley with the vault proxy that it starts, driven by the official SDK over a scripted model."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import psutil
from galley_server.app import Kitchen, Listen, kitchen
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import Answer
from galley_server.demo.script import Script
from galley_server.demo.transcript import Request
from galley_server.settings import Settings

KEY = "galley-test-key-0123456789"
LOOPBACK = {"GALLEY_PROXY_ALLOW_NETS": "127.0.0.0/8"}
"""Upstreams of tests are on this machine, which the proxy refuses to reach unless it is told to."""

ALLOW = {"enabled": True, "permission_policy": {"type": "always_allow"}}
ASK = {"enabled": True, "permission_policy": {"type": "always_ask"}}
TOOLSET: Mapping[str, Any] = {"type": "agent_toolset_20260401"}


def surroundings() -> dict[str, str]:
    """What a person's shell has, without anything of Galley's, the model's or Vault's."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("GALLEY_", "ANTHROPIC_", "VAULT_"))
    }


def mcp_toolset(server: str, *, default: Mapping[str, Any] = ASK, **configs: Mapping[str, Any]) -> dict[str, Any]:
    named = [{"name": name, **config} for name, config in configs.items()]
    return {"type": "mcp_toolset", "mcp_server_name": server, "default_config": dict(default), "configs": named}


@dataclass
class House:
    """One running server. `home` is its GALLEY_HOME."""

    client: anthropic.AsyncAnthropic
    kitchen: Kitchen
    script: Script
    home: Path
    sessions: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.kitchen.address.url

    @property
    def proxy_key(self) -> str:
        return (self.home / "vault_proxy" / "service_key").read_text().strip()

    def proxy(self) -> httpx2.AsyncClient:
        """The vault proxy itself, on its socket, with its key."""
        transport = httpx2.AsyncHTTPTransport(uds=str(self.home / "run" / "proxy.sock"))
        return httpx2.AsyncClient(
            transport=transport, base_url="http://localhost", headers={"x-api-key": self.proxy_key}, timeout=30
        )

    def http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, headers={"x-api-key": KEY}, timeout=30, trust_env=False)

    async def session(
        self,
        *,
        tools: list[Mapping[str, Any]],
        servers: Mapping[str, str] | None = None,
        networking: Mapping[str, Any] | None = None,
        vault_ids: list[str] | None = None,
    ) -> Any:
        agent = await self.client.beta.agents.create(
            name="cook",
            model="scripted-1",
            tools=tools,  # type: ignore[arg-type]
            mcp_servers=[{"type": "url", "name": name, "url": url} for name, url in (servers or {}).items()],
        )
        config: Any = {"type": "cloud", "networking": dict(networking or {"type": "unrestricted"})}
        environment = await self.client.beta.environments.create(name=f"for {agent.id}", config=config)
        session = await self.client.beta.sessions.create(
            agent=agent.id, environment_id=environment.id, vault_ids=vault_ids or []
        )
        self.sessions.append(session.id)
        return session

    async def leave_nothing(self) -> None:
        """A sandbox outlives its server by a quarter of an hour, which is no good in a test."""
        for session_id in self.sessions:
            with suppress(anthropic.APIError):
                await self.client.beta.sessions.archive(session_id)

    async def turn(self, session_id: str, text: str = "go", *answers: Answer) -> list[Any]:
        """Say something, let the model answer so, and return every event until the session is idle."""
        self.script.add(*answers)
        message: Any = {"type": "user.message", "content": [{"type": "text", "text": text}]}
        return await self.send(session_id, message)

    async def send(self, session_id: str, *events: Any) -> list[Any]:
        seen: list[Any] = []
        async with asyncio.timeout(60):
            async with await self.client.beta.sessions.events.stream(session_id) as stream:
                await self.client.beta.sessions.events.send(session_id, events=list(events))
                async for event in stream:
                    seen.append(event)
                    if event.type == "session.status_idle":
                        return seen
        raise AssertionError("the stream ended")


def of_type(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event.type == kind]


def text_of(event: Any) -> str:
    return "".join(block.text for block in event.content or () if block.type == "text")


def results(request: Request) -> str:
    """What the last tool results said, as the model read them."""
    return "\n".join(result.text for _, result in request.steps[-1:])


@contextmanager
def alone() -> Iterator[None]:
    """What a test raised, without the task groups that it left through."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


@asynccontextmanager
async def house(
    tmp_path: Path,
    *answers: Answer,
    environ: Mapping[str, str] | None = None,
    stays: bool = False,
) -> AsyncIterator[House]:
    """`stays`: its sandboxes do, for the next server of the same home."""
    home = tmp_path / "home"
    script = Script(*answers)
    with alone():
        async with AsyncExitStack() as stack:
            model_url = await stack.enter_async_context(serve_scripted(script))
            settings = Settings.from_env(
                {
                    **surroundings(),
                    "GALLEY_HOME": str(home),
                    "GALLEY_API_KEY": KEY,
                    "GALLEY_MODEL_BASE_URL": model_url,
                    "GALLEY_MODEL_API_KEY": "model-key",
                    "GALLEY_SANDBOX": "bubblewrap",
                    **LOOPBACK,
                    **(environ or {}),
                }
            )
            running = await stack.enter_async_context(kitchen(settings, Listen("127.0.0.1", 0)))
            client = await stack.enter_async_context(
                anthropic.AsyncAnthropic(base_url=running.address.url, api_key=KEY, max_retries=0)
            )
            found = House(client, running, script, home)
            try:
                yield found
            finally:
                if not stays:
                    await found.leave_nothing()


def audit_lines(home: Path) -> list[dict[str, Any]]:
    folder = home / "vault_proxy" / "audit"
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def proxy_of(pid: int) -> psutil.Process | None:
    """The vault proxy that a process has started, if it runs."""
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):  # it ended while we looked
            if "galley_vault_proxy" in " ".join(child.cmdline()):
                return child
    return None


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for another process's doing, which tells nobody."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
