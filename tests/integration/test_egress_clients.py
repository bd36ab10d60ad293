"""Real clients, in a real sandbox without a network, through the tunnel and the door: curl, git, Python, Node."""

import asyncio
import io
import json
import os
import shutil
import sysconfig
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.port import Hand, Limits, MiB, Spec, ToolResult
from galley_sandbox.way_out import EGRESS, PORTS, Door, WayOut, equip, forward
from galley_vault_proxy.grant.token import HostRule
from galley_vault_proxy.preamble import greeting

from tests.integration.egress_kit import (
    HOST,
    KEY,
    OTHER,
    PLACEHOLDER,
    Host,
    Kitchen,
    Seen,
    basic,
    credential,
    host,
    kitchen,
)

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

SECRET = "ghp_RealSecret0123456789abcdefghij"
TUNNEL = "tun_clients"
PACKAGES = (
    "requests", "urllib3", "certifi", "charset_normalizer", "idna",
    "httpx2", "httpcore2", "h11", "anyio", "truststore", "sniffio", "typing_extensions.py",
)  # fmt: skip
_serial = count()


@dataclass
class Inside:
    """A sandbox with its way out, and the hosts that there are outside."""

    hand: Hand
    house: Kitchen
    api: Host
    other: Host

    async def run(self, command: str) -> ToolResult:
        call_id = f"sevt_{next(_serial)}"
        async with asyncio.timeout(60):
            return await self.hand.call(call_id, "bash", {"command": command, "timeout_ms": 30_000})

    async def says(self, command: str) -> str:
        result = await self.run(command)
        assert not result.is_error, result.text
        return result.text


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[Inside]:
    found = [credential(secret=SECRET, locations={"header"})]
    async with kitchen(tmp_path, found=found) as house, asyncio.timeout(90):
        context = house.authority.server_context(HOST, OTHER)
        async with host(context) as api, host(context) as other:
            rules = (HostRule(HOST, ports=(api.port,)), HostRule(OTHER, ports=(other.port,)))
            token = await house.grant(*rules, tunnel=TUNNEL)
            driver = Bubblewrap(tmp_path / "s", f"home_{tmp_path.name}")
            sandbox = await driver.provision(Spec("sesn_1", Limits(memory_bytes=1024 * MiB)))
            async with sandbox.connect() as hand, asyncio.TaskGroup() as tasks:
                # The authority of the hosts outside stands for the public ones, which a sandbox trusts already.
                pem = house.door.ca_pem + house.authority.pem.encode()
                way = WayOut(await hand.listen(PORTS), token, pem, {"API_KEY": PLACEHOLDER})
                await equip(hand, way)
                doors = {EGRESS: Door(str(house.uds), greeting(KEY, TUNNEL))}
                forwarding = tasks.create_task(forward(hand, doors))
                yield Inside(hand, house, api, other)
                forwarding.cancel()
            await driver.destroy(sandbox.id)
            await driver.close()


async def put(hand: Hand, path: str, data: bytes) -> None:
    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]

    await hand.put_file(path, source())


def packed() -> bytes:
    """The packages of this environment, each with what says which version it is."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if path.name.partition("-")[0] in PACKAGES:
                archive.add(path, path.name)
    return tar.getvalue()


async def test_there_is_no_way_but_the_proxy(inside: Inside) -> None:
    assert (await inside.run(f"curl -sS --noproxy '*' --max-time 5 https://{HOST}:{inside.api.port}/")).is_error
    assert (await inside.says("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '")) == "lo"


async def test_curl_sends_the_secret_and_never_sees_it(inside: Inside) -> None:
    said = await inside.says(
        f'curl -sS -H "Authorization: Bearer $API_KEY" -d "x=1" https://{HOST}:{inside.api.port}/v1'
    )
    assert inside.api.seen[0].header("authorization") == f"Bearer {SECRET}"
    assert SECRET not in said
    assert "[redacted]" in said


async def test_curl_passes_untouched_to_a_host_without_a_credential(inside: Inside) -> None:
    said = await inside.says(f'curl -sSv -H "X: $API_KEY" https://{OTHER}:{inside.other.port}/ 2>&1')
    assert "a public authority" in said
    assert inside.other.seen[0].header("x") == PLACEHOLDER


async def test_curl_uploads_what_it_has_to_ask_for_first(inside: Inside) -> None:
    said = await inside.says(
        f"head -c 3000000 /dev/zero | tr '\\0' a | curl -sS -T - https://{HOST}:{inside.api.port}/up | wc -c"
    )
    assert len(inside.api.seen[0].body) == 3_000_000
    assert int(said) > 3_000_000


async def test_curl_is_told_why_it_may_not(inside: Inside) -> None:
    result = await inside.run("curl -sSv https://evil.test/ 2>&1")
    assert result.is_error
    assert "403" in result.text
    assert (await inside.house.line("egress.connect", "deny"))["host"] == "evil.test:443"


async def test_the_standard_library_of_python_finds_its_way(inside: Inside) -> None:
    script = f"""
import json, os, urllib.request
request = urllib.request.Request("https://{HOST}:{inside.api.port}/", headers={{"X-Key": os.environ["API_KEY"]}})
print(json.load(urllib.request.urlopen(request, timeout=10))["target"])
"""
    await put(inside.hand, "/workspace/ask.py", script.encode())
    assert await inside.says("python3 ask.py") == "/"
    assert inside.api.seen[0].header("x-key") == SECRET


async def test_requests_and_httpx_find_their_way(inside: Inside) -> None:
    await put(inside.hand, "/workspace/packages.tar", await asyncio.to_thread(packed))
    script = f"""
import os, sys
sys.path.insert(0, "packages")
import httpx2, requests
headers = {{"X-Key": os.environ["API_KEY"]}}
for library in (requests, httpx2):
    print(library.get("https://{HOST}:{inside.api.port}/read", headers=headers, timeout=10).json()["target"])
    print(library.post("https://{OTHER}:{inside.other.port}/opaque", json={{"a": 1}}, timeout=10).json()["target"])
"""
    await put(inside.hand, "/workspace/ask.py", script.encode())
    said = await inside.says("mkdir packages && tar -xf packages.tar -C packages && python3 -W error ask.py")
    assert said.split() == ["/read", "/opaque"] * 2
    assert [seen.header("x-key") for seen in inside.api.seen] == [SECRET] * 2


async def test_node_trusts_the_authority(inside: Inside) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    # fetch takes the proxy from the environment from Node 22.21 on; older ones have to be led by hand.
    script = f"""
const http = require("http"), https = require("https"), tls = require("tls");
const proxy = new URL(process.env.HTTPS_PROXY);
const authorization = "Basic " + Buffer.from(proxy.username + ":" + proxy.password).toString("base64");
http.request({{host: proxy.hostname, port: proxy.port, method: "CONNECT", path: "{HOST}:{inside.api.port}",
  headers: {{"Host": "{HOST}:{inside.api.port}", "Proxy-Authorization": authorization}},
}}).on("connect", (answer, socket) => {{
  const agent = new https.Agent();
  agent.createConnection = () => tls.connect({{socket, servername: "{HOST}"}});
  const headers = {{"X-Key": process.env.API_KEY}};
  https.get({{host: "{HOST}", port: {inside.api.port}, path: "/node", agent, headers}}, (answer) => {{
    console.log(answer.statusCode);
    answer.resume();
    answer.on("end", () => process.exit(0));
  }});
}}).end();
"""
    await put(inside.hand, "/workspace/ask.cjs", script.encode())
    assert await inside.says("node ask.cjs") == "200"
    assert inside.api.seen[0].header("x-key") == SECRET


async def test_node_fetch_finds_its_way_by_itself(inside: Inside) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    version = (await inside.says("node --version")).removeprefix("v").split(".")
    if (int(version[0]), int(version[1])) < (22, 21):
        pytest.skip(f"node {'.'.join(version)} does not read the proxy from the environment")
    ask = f"fetch('https://{HOST}:{inside.api.port}/', {{headers: {{'X-Key': process.env.API_KEY}}}})"
    assert await inside.says(f'node -e "{ask}.then(answer => console.log(answer.status))"') == "200"
    assert inside.api.seen[0].header("x-key") == SECRET


async def git_http_backend(root: Path, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """git's own server, behind a password that only the real secret is."""
    if seen.header("authorization") != basic(SECRET, "x-access-token"):
        writer.write(
            b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="git"\r\n'
            b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()
        return
    path, _, query = seen.target.partition("?")
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REMOTE_USER": "agent",
        "REQUEST_METHOD": seen.method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": seen.header("content-type") or "",
        "HTTP_CONTENT_ENCODING": seen.header("content-encoding") or "",
        "GIT_PROTOCOL": seen.header("git-protocol") or "",
        "CONTENT_LENGTH": str(len(seen.body)),
    }
    pipe = asyncio.subprocess.PIPE
    backend = await asyncio.create_subprocess_exec("git", "http-backend", stdin=pipe, stdout=pipe, env=environment)
    said, _ = await backend.communicate(seen.body)
    head, _, body = said.partition(b"\r\n\r\n")
    status = next((line[8:] for line in head.split(b"\r\n") if line.startswith(b"Status: ")), b"200 OK")
    writer.write(b"HTTP/1.1 %b\r\n%b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, head, len(body)))
    writer.write(body)
    await writer.drain()


async def run(*command: str) -> None:
    program = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await program.wait() == 0


async def test_git_clones_and_pushes_with_a_token_that_it_does_not_have(inside: Inside, tmp_path: Path) -> None:
    bare = tmp_path / "repos" / "one.git"
    await run("git", "init", "-q", "--bare", "-b", "main", str(bare))
    await run("git", "-C", str(bare), "config", "http.receivepack", "true")

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await git_http_backend(bare.parent, seen, writer)

    inside.api.answer = answer
    said = await inside.says(
        f"""set -e
git clone -q https://x-access-token:$API_KEY@{HOST}:{inside.api.port}/one.git 2>&1
cd one
git config user.email agent@galley.test; git config user.name agent
head -c 2000000 /dev/urandom > large; git add large; git commit -qm first
git push -q origin HEAD:main 2>&1
cd ..; git clone -q -b main https://x-access-token:$API_KEY@{HOST}:{inside.api.port}/one.git again 2>&1
cmp one/large again/large && echo same"""
    )
    assert said.endswith("same")
    grep = await inside.run(f"grep -r {SECRET} /workspace /home /tmp /proc/self/environ")
    assert grep.text.strip() in ("", "Exit code 1") or SECRET not in grep.text


async def test_a_running_command_is_cut_off_by_the_end_of_its_session(inside: Inside) -> None:
    begun = asyncio.Event()

    async def never(seen: Seen, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await asyncio.Event().wait()

    inside.api.answer = never
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(inside.run(f"curl -sS https://{HOST}:{inside.api.port}/"))
        await begun.wait()
        async with asyncio.timeout(1.5):
            await inside.house.registry.revoke_session("sesn_1")
            assert (await asking).is_error


async def test_the_token_of_one_sandbox_is_worth_nothing_in_another_tunnel(inside: Inside) -> None:
    token = await inside.says("cat $GALLEY_TOKEN_FILE")
    async with inside.house.client(tunnel="tun_another") as client:
        line = f"CONNECT {HOST}:{inside.api.port} HTTP/1.1\r\nHost: {HOST}:{inside.api.port}\r\n"
        await client.say(f"{line}Proxy-Authorization: Bearer {token}\r\n\r\n".encode())
        assert (await client.head())[0] == 407


async def test_all_that_is_in_the_sandbox_is_the_placeholder(inside: Inside) -> None:
    await inside.says(f'curl -sS -H "X: $API_KEY" https://{HOST}:{inside.api.port}/ > kept')
    assert json.loads(await inside.says("cat kept"))["headers"]
    everywhere = await inside.run(
        f"env | grep -c {SECRET}; grep -rlF {SECRET} /workspace /home/agent /tmp /mnt/session 2>/dev/null; true"
    )
    assert everywhere.text.strip() == "0"
