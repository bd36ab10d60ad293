"""Programs of others at work through the door: Claude Code, the Inspector, and the protocol's own reference servers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from galley_vault_proxy.config import StdioServer
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.integration.mcp_agents_program import MODEL_PORT
from tests.integration.mcp_door_kit import CANARY, Opened, open_door
from tests.integration.mcp_node_kit import PROJECT, Programs, installed

pytestmark = [pytest.mark.anyio, pytest.mark.node, pytest.mark.bubblewrap]

BIG = 200_000
CLAUDE_CODE = {
    "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{MODEL_PORT}",
    "ANTHROPIC_API_KEY": "none",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "ENABLE_TOOL_SEARCH": "false",
    "MCP_TIMEOUT": "20000",
}
ALLOWED = ",".join(f"mcp__up__{tool}" for tool in ("echo", "big", "slow", "delete_all"))


@pytest.fixture(scope="session")
def programs() -> Programs:
    return installed()


@dataclass(frozen=True)
class Site:
    """Where one client runs: no network but loopback, a home of its own."""

    programs: Programs
    home: Path

    async def report(self, what: str, *command: str, **environment: str) -> dict[str, Any]:
        """Run a client behind the door; `{door}` and `{token}` in the command are filled in."""
        (self.home / "home").mkdir()
        (self.home / "door").mkdir()
        cage = ("bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--unshare-net", "--unshare-pid")
        own = {**self.programs.environment(self.home / "home"), **environment}
        process = await asyncio.create_subprocess_exec(
            *(*cage, "--die-with-parent", "--chdir", str(PROJECT.parents[1]), *_in(own)),
            *(*_program(), what, str(self.home / "door"), "--", *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120):
                out, error = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, error.decode()
        found = json.loads(out.splitlines()[-1])
        assert isinstance(found, dict)
        # Whatever it was, the credential went to the server, and nobody else has seen it.
        assert set(found.pop("credentials")) <= {f"Bearer {CANARY}"}
        assert CANARY not in json.dumps(found)
        return found

    async def claude_code(self, what: str, prompt: str) -> dict[str, Any]:
        server = {"type": "http", "url": "${DOOR}", "headers": {"Authorization": "Bearer ${TOKEN}"}}
        (self.home / "mcp.json").write_text(json.dumps({"mcpServers": {"up": server}}))
        words: tuple[str, ...] = ("-p", prompt, "--mcp-config", str(self.home / "mcp.json"), "--strict-mcp-config")
        words += ("--allowedTools", ALLOWED, "--output-format", "json")
        command = ("/usr/bin/env", "DOOR={door}", "TOKEN={token}", *self.programs.claude_code, *words)
        return await self.report(what, *command, CLAUDE_CONFIG_DIR=str(self.home / "home"), **CLAUDE_CODE)

    async def inspector(self, what: str, era: str, *words: str) -> dict[str, Any]:
        about = ("--transport", "http", "--protocol-era", era, "--header", "Authorization: Bearer {token}")
        return await self.report(
            what, *self.programs.command("mcp-inspector", "--cli", "{door}", *about, *words, "--format", "json")
        )


def _program() -> tuple[str, ...]:
    return (str(PROJECT.parents[1] / ".venv" / "bin" / "python"), "-m", "tests.integration.mcp_agents_program")


def _in(environment: dict[str, str]) -> list[str]:
    given = [part for name, value in environment.items() for part in ("--setenv", name, value)]
    return ["--clearenv", *given]


@pytest.fixture
def site(programs: Programs, tmp_path: Path) -> Site:
    return Site(programs, tmp_path)


async def test_claude_code_calls_a_tool(site: Site) -> None:
    found = await site.claude_code("allowed", 'CALL mcp__up__echo {"text": "hello agents"}')

    assert json.loads(found["out"])["result"] == "SAID hello agents"
    assert (found["calls"], found["versions"]) == (["echo"], ["2026-07-28"])
    (line,) = [line for line in found["lines"] if line["action"] == "mcp.tool"]
    assert (line["tool"], line["event_id"], line["decision"]) == ("echo", "toolu_01", "allow")


async def test_claude_code_is_not_offered_what_its_grant_does_not_include(site: Site) -> None:
    found = await site.claude_code("denied", "CALL mcp__up__delete_all {}")

    assert "mcp__up__echo" in found["offered"]
    assert "mcp__up__delete_all" not in found["offered"]
    assert found["calls"] == []


async def test_claude_code_is_not_offered_a_tool_that_drifted(site: Site) -> None:
    found = await site.claude_code("drifted", 'CALL mcp__up__echo {"text": "x"}')

    assert "mcp__up__big" in found["offered"]
    assert "mcp__up__echo" not in found["offered"]
    assert found["calls"] == []
    assert "definition_drifted" in {line.get("reason") for line in found["lines"]}


async def test_claude_code_gets_a_big_result_whole(site: Site) -> None:
    found = await site.claude_code("allowed", "CALL mcp__up__big {}")

    # What is too much for the model it keeps in a file, and says how much it was.
    assert f"{BIG:,} characters" in found["results"][0]
    (line,) = [line for line in found["lines"] if line["action"] == "mcp.tool"]
    assert line["bytes"] > BIG


async def test_claude_code_that_is_interrupted_lets_go_of_the_server(site: Site) -> None:
    found = await site.claude_code("slow", "CALL mcp__up__slow {}")

    assert found["hung_up"] is True
    assert "client_gone" in {line.get("reason") for line in found["lines"]}


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_lists_and_calls(site: Site, era: str) -> None:
    call = ("--method", "tools/call", "--tool-name", "echo", "--tool-args-json", '{"text": "hello"}')
    found = await site.inspector("allowed", era, *call)

    assert (found["status"], found["calls"]) == (0, ["echo"]), found["error"]
    assert '"hello"' in found["out"]
    assert found["versions"] == ["2025-11-25" if era == "legacy" else "2026-07-28"]


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_is_refused_a_tool_that_its_grant_does_not_include(site: Site, era: str) -> None:
    found = await site.inspector("denied", era, "--method", "tools/call", "--tool-name", "delete_all")

    assert found["status"] != 0
    assert "delete_all" in found["error"]
    assert found["calls"] == []


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_is_not_shown_a_tool_that_drifted(site: Site, era: str) -> None:
    found = await site.inspector("drifted", era, "--method", "tools/list")

    assert found["status"] == 0
    assert "delete_all" in found["out"]
    assert '"echo"' not in found["out"]


def reference(programs: Programs, name: str, *words: str, **more: Any) -> StdioServer:
    """One of the reference servers, in the cage of stdio servers, without any network."""
    script = programs.modules / "@modelcontextprotocol" / f"server-{name}" / "dist" / "index.js"
    return StdioServer(
        name, str(programs.node), (str(script), *words), "TOKEN", network=False, read=(str(PROJECT),), **more
    )


@asynccontextmanager
async def client_of(door: Opened, name: str, mode: str) -> AsyncIterator[Client]:
    token = await door.token({"up": f"stdio:{name}"})
    door.credentials.tokens[f"stdio:{name}"] = CANARY
    headers = {"authorization": f"Bearer {token}"}
    async with (
        asyncio.timeout(60),
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http,
        Client(streamable_http_client(f"{door.url}/up", http_client=http), mode=mode) as client,
    ):
        yield client


async def said(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    return "".join(str(getattr(block, "text", "")) for block in result.content)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_reference_servers_work_in_their_cages(programs: Programs, tmp_path: Path, mode: str) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    data.mkdir()
    (data / "a.txt").write_text("of the data")
    (tmp_path / "b.txt").write_text("of somebody else")
    servers = {
        "everything": reference(programs, "everything", "stdio"),
        "filesystem": reference(programs, "filesystem", str(data), write=(str(data),)),
        "memory": reference(
            programs, "memory", env={"MEMORY_FILE_PATH": str(data / "memory.jsonl")}, write=(str(data),)
        ),
    }
    home.mkdir()
    async with open_door(home, stdio=servers) as door:
        async with client_of(door, "everything", mode) as client:
            assert await said(client, "echo", message="hi") == "Echo: hi"
            shown = await said(client, "get-env")
        async with client_of(door, "filesystem", mode) as client:
            assert await said(client, "read_text_file", path=str(data / "a.txt")) == "of the data"
            refused = await said(client, "read_text_file", path=str(tmp_path / "b.txt"))
        async with client_of(door, "memory", mode) as client:
            entity = {"name": "Galley", "entityType": "ship", "observations": ["floats"]}
            await said(client, "create_entities", entities=[entity])
            assert "floats" in await said(client, "read_graph")

    assert "[redacted]" in shown
    assert CANARY not in shown
    assert "Access denied" in refused
    assert "floats" in (data / "memory.jsonl").read_text()
