"""`galley vault` as a command: beside the server, and from any other machine."""

import asyncio
import re
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.server_process import GALLEY, Served, environment, served
from tests.integration.broker_kit import LOOPBACK
from tests.integration.proxy_oauth_server import Servers, servers

pytestmark = pytest.mark.anyio

MODEL = {"GALLEY_MODEL_BASE_URL": "http://127.0.0.1:1", "GALLEY_MODEL_API_KEY": "k"}


async def start(home: Path, *words: str, **settings: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *GALLEY,
        "vault",
        *words,
        env=environment(home, **{"GALLEY_BROKER": "auto", **settings}),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def run(home: Path, *words: str, **settings: str) -> tuple[int, str, str]:
    process = await start(home, *words, **settings)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def url_of(process: Process) -> str:
    """The one that it asks to open."""
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(60):
        async for line in process.stderr:
            said += line
            if (found := re.search(rb"^ +(https?://\S+)", line)) is not None:
                return found[1].decode()
    raise AssertionError(said)


@asynccontextmanager
async def stage(tmp_path: Path, **settings: str) -> AsyncIterator[tuple[Served, Servers]]:
    async with AsyncExitStack() as stack:
        oauth = await stack.enter_async_context(servers())
        server = await stack.enter_async_context(
            served(tmp_path / "home", GALLEY_BROKER="auto", **MODEL, **LOOPBACK, **settings)
        )
        yield server, oauth


async def credentials(server: Served, vault: str) -> list[tuple[str, str]]:
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, trust_env=False) as client:
        found = (await client.get(f"/v1/vaults/{vault}/credentials")).json()
    return [(one["id"], one["auth"]["type"]) for one in found["data"]]


async def test_a_vault_is_made_logged_in_to_and_listed(tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, oauth):
        status, vault, err = await run(server.home, "create", "Kitchen")
        assert (status, err) == (0, "")
        process = await start(server.home, "login", oauth.mcp.url, "--name", "Docs")
        page = await oauth.consent(await url_of(process))
        assert page.status_code == 200
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        assert process.returncode == 0
        credential = out.decode().strip()
        assert await credentials(server, vault.strip()) == [(credential, "mcp_oauth")]
        status, shown, _ = await run(server.home, "list")
        assert status == 0
        assert shown == f"{vault.strip()}  Kitchen\n  {credential}  mcp_oauth  {oauth.mcp.url}\n"


async def test_a_browser_elsewhere_is_served_by_pasting_where_it_was_sent_to(tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, oauth):
        vault = (await run(server.home, "create", "Kitchen"))[1].strip()
        process = await start(server.home, "login", oauth.mcp.url, "--vault", vault, "--paste")
        sent_to = await oauth.sent_to(await url_of(process))
        async with asyncio.timeout(60):
            out, _ = await process.communicate(f"{sent_to}\n".encode())
        assert process.returncode == 0
        assert await credentials(server, vault) == [(out.decode().strip(), "mcp_oauth")]


async def test_a_server_elsewhere_is_reached_with_its_url_and_key(tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, _):
        elsewhere = {"GALLEY_URL": server.url, "GALLEY_API_KEY": server.key}
        status, vault, err = await run(tmp_path / "other", "create", "Kitchen", **elsewhere)
        assert (status, err) == (0, "")
        assert (await run(tmp_path / "other", "list", **elsewhere))[1] == f"{vault.strip()}  Kitchen\n"
        status, out, err = await run(
            tmp_path / "other", "list", **{**elsewhere, "GALLEY_API_KEY": "wrong-key-0123456789"}
        )
        assert (status, out) == (1, "")
        assert "wrong-key" not in err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({}, "start `galley serve` first", id="no server"),
        pytest.param({"GALLEY_BROKER": "off"}, "GALLEY_BROKER is off", id="no vault proxy"),
        pytest.param(
            {"GALLEY_URL": "http://127.0.0.1:1", "GALLEY_API_KEY": "key-0123456789abcdef"},
            "no Galley answers",
            id="gone",
        ),
    ],
)
async def test_where_nothing_answers_it_says_what_to_do(tmp_path: Path, settings: Mapping[str, str], says: str) -> None:
    status, out, err = await run(tmp_path / "home", "list", **settings)
    assert status != 0
    assert out == ""
    assert says in err
    assert "Traceback" not in err


async def test_what_the_vault_proxy_refuses_is_said_as_it_says_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, oauth):
        status, _, err = await run(server.home, "login", oauth.mcp.url)
        assert status == 1
        assert "there is no vault yet" in err
        for name in ("Kitchen", "Cellar"):
            await run(server.home, "create", name)
        status, _, err = await run(server.home, "login", oauth.mcp.url)
        assert status == 1
        assert "choose one with --vault" in err
        status, _, err = await run(server.home, "login", oauth.mcp.url, "--vault", "vlt_none")
        assert status == 1
        assert "vlt_none" in err
        # A vault of no name.
        status, _, err = await run(server.home, "create", "")
        assert status == 1
        assert "display_name" in err


async def test_a_clients_secret_is_read_from_the_environment_and_never_shown(tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, oauth):
        await run(server.home, "create", "Kitchen")
        words = ("login", oauth.mcp.url, "--client-id", "client-1", "--client-secret-env", "MY_SECRET")
        status, _, err = await run(server.home, *words)
        assert status == 2
        assert "MY_SECRET is not set" in err
        process = await start(server.home, *words, MY_SECRET="the-client-secret-0001")
        assert "the-client-secret" not in await url_of(process)
        process.kill()
        await process.wait()


def test_help_names_every_command() -> None:
    shown = subprocess.run([*GALLEY, "vault", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(word in shown for word in ("list", "create", "login"))
