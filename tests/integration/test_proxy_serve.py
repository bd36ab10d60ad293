"""`galley-vault-proxy serve` as people run it: one line when it is ready, a clean end, and nothing lost between."""

import asyncio
import json
import signal
import stat
import sys
from pathlib import Path

import httpx2
import psutil
import pytest
from galley_vault_proxy.preamble import greeting
from galley_vault_proxy.secret import Secret

from tests.integration.proxy_kit import KEY, clean_environment, proxy

pytestmark = pytest.mark.anyio


async def run(*words: str, environ: dict[str, str], stdin: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "galley_vault_proxy", *words),
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_it_says_when_it_is_ready_and_answers_then(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running, running.client() as client:
        assert (await client.get("/healthz", headers={"x-api-key": ""})).json() == {"status": "ok"}
        ready = await client.get("/readyz", headers={"x-api-key": ""})
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_it_ends_cleanly_on_a_signal_with_a_request_half_sent(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running:
        url = httpx2.URL(running.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /v1/grants HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\ncontent-length: 9\r\n" % KEY.encode())
        writer.write(b"content-type: application/json\r\n\r\n{")
        await writer.drain()
        await running.grant()
        assert await running.stop(signal.SIGTERM) == 0
        await reader.read()
        writer.close()


async def test_an_interrupt_ends_it_too(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running:
        assert await running.stop(signal.SIGINT) == 0


async def test_after_a_kill_a_grant_and_a_revocation_are_as_they_were(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running:
        kept, gone = await running.grant("sesn_1"), await running.grant("sesn_2")
        async with running.client() as client:
            await client.delete("/v1/sessions/sesn_2")
        await running.stop(signal.SIGKILL)
    async with proxy(tmp_path) as running, running.client() as client:
        assert (await client.get(f"/v1/grants/{kept['id']}")).json()["status"] == "live"
        assert (await client.get(f"/v1/grants/{gone['id']}")).json()["status"] == "revoked"


async def test_two_processes_share_a_home(tmp_path: Path) -> None:
    async with proxy(tmp_path) as one, proxy(tmp_path) as other, other.client() as client:
        grant = await one.grant()
        assert (await client.get(f"/v1/grants/{grant['id']}")).json()["status"] == "live"
        assert (await client.delete(f"/v1/grants/{grant['id']}")).status_code == 200
        async with one.client() as first:
            assert (await first.get(f"/v1/grants/{grant['id']}")).json()["status"] == "revoked"


async def test_the_service_key_is_made_at_the_first_start(tmp_path: Path) -> None:
    async with proxy(tmp_path, environ={"GALLEY_PROXY_KEY": ""}) as running:
        file = tmp_path / "service_key"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {file.read_text().strip()}"}) as client:
            assert (await client.get(f"{running.url}/v1/audit")).status_code == 200


async def test_on_its_unix_socket_it_serves_the_same_api(tmp_path: Path) -> None:
    uds = tmp_path / "run" / "proxy.sock"
    async with proxy(tmp_path, "--uds", str(uds)) as running:
        assert stat.S_IMODE(uds.stat().st_mode) == 0o600
        transport = httpx2.AsyncHTTPTransport(uds=str(uds))
        async with httpx2.AsyncClient(transport=transport, base_url="http://proxy") as client:
            assert (await client.get("/v1/audit", headers={"x-api-key": KEY})).status_code == 200
        assert await running.stop() == 0
    assert not uds.exists()


async def test_without_tcp_it_is_to_be_found_on_its_sockets_only(tmp_path: Path) -> None:
    environ = {**clean_environment(), "GALLEY_PROXY_HOME": str(tmp_path), "GALLEY_PROXY_KEY": KEY}
    uds, egress = tmp_path / "proxy.sock", tmp_path / "egress.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "galley_vault_proxy", "serve", "--no-tcp", "--lifeline"),
        *("--uds", str(uds), "--egress-uds", str(egress)),
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    async with asyncio.timeout(30):
        assert (await process.stdout.readline()).decode() == f"galley-vault-proxy ready unix:{uds}\n"
        listening = [one for one in psutil.Process(process.pid).net_connections("inet") if one.status == "LISTEN"]
        assert listening == []
        transport = httpx2.AsyncHTTPTransport(uds=str(uds))
        async with httpx2.AsyncClient(transport=transport, base_url="http://proxy", headers={"x-api-key": KEY}) as one:
            found = (await one.get("/v1/egress")).json()
        assert found["url"] is None
        assert egress.is_socket()
        # Whoever started it is gone: so is it.
        process.stdin.close()
        assert await process.wait() == 0
    assert not uds.exists()


async def test_without_tcp_it_needs_both_sockets(tmp_path: Path) -> None:
    environ = {**clean_environment(), "GALLEY_PROXY_HOME": str(tmp_path)}
    status, _, err = await run("serve", "--no-tcp", "--uds", str(tmp_path / "proxy.sock"), environ=environ)
    assert (status, "--no-tcp needs --uds and --egress-uds" in err) == (2, True)


async def test_a_request_that_is_passed_on_keeps_its_id(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running, running.client() as client:
        answer = await client.get("/v1/vaults/vlt_x", headers={"galley-request-id": "req_01abc"})
        assert (answer.headers["request-id"], answer.json()["request_id"]) == ("req_01abc", "req_01abc")
        strange = await client.get("/v1/vaults/vlt_x", headers={"galley-request-id": "req_ 1\tx"})
        assert strange.headers["request-id"] not in ("", "req_ 1\tx")


async def test_the_sessions_that_live_are_listed(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running, running.client() as client:
        for number in (3, 1, 2):
            await running.grant(f"sesn_{number}")
        await client.delete("/v1/sessions/sesn_2")
        first = (await client.get("/v1/sessions", params={"limit": 1})).json()
        rest = (await client.get("/v1/sessions", params={"after": "sesn_1"})).json()
        assert ([one["id"] for one in first["data"]], first["has_more"]) == (["sesn_1"], True)
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (["sesn_3"], False)


async def test_a_sandbox_reaches_no_api_even_with_the_key(tmp_path: Path) -> None:
    uds = tmp_path / "proxy.sock"
    async with proxy(tmp_path, "--uds", str(uds)):
        reader, writer = await asyncio.open_unix_connection(str(uds))
        writer.write(greeting(Secret(KEY), "tun_1"))
        writer.write(b"GET /v1/audit HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\nconnection: close\r\n\r\n" % KEY.encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 404")
        writer.close()


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"GALLEY_PROXY_KEY": "short"}, "GALLEY_PROXY_KEY is too short"),
        ({"GALLEY_PROXY_PORT": "1"}, "GALLEY_PROXY_PORT is not a setting"),
        ({"VAULT_ADDR": "http://vault.example.com"}, "VAULT_ADDR"),
        ({"GALLEY_PROXY_CONFIG": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
async def test_a_wrong_setting_keeps_it_from_starting(tmp_path: Path, environ: dict[str, str], named: str) -> None:
    whole = {**clean_environment(), "GALLEY_PROXY_HOME": str(tmp_path), **environ}
    status, out, err = await run("serve", "--port", "0", "--egress-port", "0", environ=whole)
    assert (status, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running:
        port = str(httpx2.URL(running.url).port)
        whole = {**clean_environment(), "GALLEY_PROXY_HOME": str(tmp_path)}
        status, _, err = await run("serve", "--egress-port", "0", "--port", port, environ=whole)
        assert status == 2
        assert f"port {port}" in err
        assert "Traceback" not in err


async def test_a_taken_socket_is_named_and_left_alone(tmp_path: Path) -> None:
    uds = tmp_path / "proxy.sock"
    async with proxy(tmp_path, "--uds", str(uds)):
        whole = {**clean_environment(), "GALLEY_PROXY_HOME": str(tmp_path)}
        status, _, err = await run("serve", "--port", "0", "--egress-port", "0", "--uds", str(uds), environ=whole)
        assert status == 2
        assert "another program does" in err
        assert uds.exists()


async def test_narrowing_needs_nothing_but_the_token(tmp_path: Path) -> None:
    async with proxy(tmp_path / "home") as running:
        servers = [{"name": "a", "url": "https://a.example"}, {"name": "b", "url": "https://b.example"}]
        grant = await running.grant(mcp_servers=servers)
    # Nothing of the environment: no home, no settings, not even the names of them.
    status, out, err = await run("narrow", "--server", "a", "--tool", "t", environ={}, stdin=grant["token"].encode())
    assert (status, err) == (0, "")
    assert out.startswith(grant["token"].rpartition(".")[0])
    assert out.endswith("\n")


async def test_narrowing_opens_no_file_and_no_socket(tmp_path: Path) -> None:
    """The interpreter itself tells what is opened, after the imports."""
    program = tmp_path / "watched.py"
    await asyncio.to_thread(
        program.write_text,
        "import sys\n"
        "from galley_vault_proxy.cli.narrow import main\n"
        "def watch(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith(('.py', '.pyc')) and args[1] in (None, 'r', 'rb'):\n"
        "        return\n"  # argparse imports more of the standard library
        "    if event == 'open' or event.startswith(('socket.', 'subprocess.', 'os.exec', 'os.listdir')):\n"
        "        raise SystemExit(f'{event} {args}')\n"
        "sys.addaudithook(watch)\n"
        "sys.exit(main(['--expires-in', '5'], {}))\n",
    )
    async with proxy(tmp_path / "home") as running:
        token = (await running.grant())["token"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program)),
        env={},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(token.encode())
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"galley1.")


@pytest.mark.parametrize(
    ("words", "stdin", "status", "said"),
    [
        (["--server", "a"], b"", 1, "no grant"),
        (["--server", "a"], b"sk-nothing", 1, "not a grant"),
        (["--expires-in", "-5"], b"", 2, "'-5' is not a number of seconds"),
        (["--server", "a"], b"A" * 100_000, 1, "not a grant"),
    ],
)
async def test_narrowing_says_what_is_wrong(words: list[str], stdin: bytes, status: int, said: str) -> None:
    found, out, err = await run("narrow", *words, environ={}, stdin=stdin)
    assert (found, out) == (status, "")
    assert said in err


async def test_an_unknown_command_is_named() -> None:
    status, _, err = await run("nrarow", environ={})
    assert status == 2
    assert "'nrarow' is not a command" in err


async def test_no_token_and_no_key_is_logged_or_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "galley_vault_proxy", "serve", "--port", "0", "--egress-port", "0"),
            env={
                **clean_environment(),
                "GALLEY_PROXY_HOME": str(tmp_path / "home"),
                "GALLEY_PROXY_KEY": KEY,
                "GALLEY_PROXY_LOG_LEVEL": "debug",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().split()[-1]
    async with httpx2.AsyncClient(base_url=url, headers={"x-api-key": KEY}) as client:
        made = await client.post("/v1/grants", json={"session_id": "s", "expires_in": 60})
        token = made.json()["token"]
        for wrong in ("/v1/grants/x", f"/v1/grants/{token}", f"/v1/sessions/{token}", f"/v1/audit?after={token}"):
            answer = await client.request("DELETE" if "sessions" in wrong else "GET", wrong)
            if "audit" in wrong:
                assert token not in answer.text
        await client.get("/v1/audit", headers={"x-api-key": token})
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    kept = b"".join(
        [log.read_bytes(), *(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())]
    )
    assert token.rpartition(".")[2].encode() not in kept
    assert KEY.encode() not in kept


async def test_what_happened_is_in_the_audit_log(tmp_path: Path) -> None:
    async with proxy(tmp_path) as running, running.client() as client:
        grant = await running.grant("sesn_7", thread_id="sthr_1")
        await client.delete(f"/v1/grants/{grant['id']}")
        await client.delete("/v1/sessions/sesn_7")
        found = (await client.get("/v1/audit", params={"session_id": "sesn_7"})).json()
    assert [line["action"] for line in found["data"]] == ["grant.mint", "grant.revoke", "session.revoke"]
    assert found["data"][0]["thread_id"] == "sthr_1"
    on_disk = [
        json.loads(line) for file in (tmp_path / "audit").glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    assert on_disk == found["data"]
