"""Real clients of each era reach real servers of the other one, over every transport, and are asked what they ask."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from galley_vault_proxy.config import StdioServer
from galley_vault_proxy.mcp_door import holding
from galley_vault_proxy.mcp_door.limits import Limits
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CreateMessageResult, ElicitResult, ListRootsResult, TextContent
from starlette.responses import Response

from tests.integration.mcp_door_client import bare, through
from tests.integration.mcp_door_kit import CANARY, EVERYTHING, Opened, everything, open_door
from tests.integration.mcp_door_upstream import Received, Upstream, events, reply, scripted

pytestmark = pytest.mark.anyio

ASKING: dict[str, tuple[dict[str, Any], str]] = {
    "test_elicitation": (
        {"message": "x"},
        'User response: action=accept, content={"response":"yes","name":"Ann","color":"red"}',
    ),
    "test_sampling": ({"prompt": "x"}, "LLM response: a model"),
    "test_input_required_result_elicitation": ({}, "Hello, Ann!"),
    "test_input_required_result_multi_round": ({}, "asked twice"),
    "test_input_required_result_list_roots": ({}, "The roots are known."),
}


# A server that tells what it sees of the machine it runs on.
SEEN = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        seen = {
            "env": dict(os.environ),
            "secret": os.path.exists(sys.argv[1]),
            "root": os.path.exists("/root") or os.path.exists("/work"),
            "pids": len([name for name in os.listdir("/proc") if name.isdigit()]),
        }
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}, "seen": seen}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


async def elicited(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"response": "yes", "name": "Ann", "color": "red"})


async def sampled(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", content=TextContent(type="text", text="a model"), model="m")


async def rooted(context: Any) -> ListRootsResult:
    return ListRootsResult(roots=[])


@asynccontextmanager
async def client_of(door: Opened, url: str, mode: str) -> AsyncIterator[Client]:
    token = await door.token({"up": url})
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=20) as http,
        Client(
            streamable_http_client(f"{door.url}/up", http_client=http),
            mode=mode,
            elicitation_callback=elicited,
            sampling_callback=sampled,
            list_roots_callback=rooted,
        ) as client,
    ):
        yield client


def text_of(result: Any) -> str:
    return str(result.content[0].text)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("server", ["legacy", "modern", "sse", pytest.param("stdio", marks=pytest.mark.bubblewrap)])
async def test_a_client_of_either_era_uses_a_server_of_either(tmp_path: Path, server: str, mode: str) -> None:
    options = {"legacy": ("http", "--only", "legacy"), "modern": ("http", "--only", "modern"), "sse": ("sse",)}
    async with AsyncExitStack() as stack, open_door(tmp_path, stdio={"every": every()}) as door:
        url = "stdio:every" if server == "stdio" else await stack.enter_async_context(everything(*options[server]))
        door.credentials.tokens[url] = CANARY
        async with asyncio.timeout(30), client_of(door, url, mode) as client:
            assert client.protocol_version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
            assert "echo" in [tool.name for tool in (await client.list_tools()).tools]
            assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"
            seen: list[float] = []
            await client.call_tool("test_tool_with_progress", {}, progress_callback=progress_into(seen))
            assert seen == [0, 50, 100]
            read = await client.read_resource("test://static-text")
            assert getattr(read.contents[0], "text", "").startswith("This is")
            for tool, (arguments, said) in ASKING.items():
                assert text_of(await client.call_tool(tool, arguments)) == said
            assert text_of(await client.call_tool("test_x_mcp_header", {"region": "größe"})) == "in größe"
            wrong = await client.call_tool("echo", {"text": 5})
            assert wrong.is_error
            shown = text_of(await client.call_tool("environment" if server == "stdio" else "whoami"))

    assert CANARY not in shown
    assert "[redacted]" in shown


def progress_into(seen: list[float]) -> Any:
    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    return progress


def every(**more: Any) -> StdioServer:
    read = (str(Path(EVERYTHING).parent), sys.prefix, sys.base_prefix)
    args = ("-W", "ignore", EVERYTHING, "stdio")
    return StdioServer("every", sys.executable, args, credential_env="TOKEN", read=read, **more)


LEGACY_ONLY = {"code": -32000, "message": "Bad Request: unsupported protocol version"}


def legacy_only(then: Any = None) -> Any:
    """A server that knows nothing of the newer era."""

    async def answer(got: Received) -> Response | None:
        if got.headers.get("mcp-protocol-version") == "2026-07-28":
            return reply({"id": None}, error=LEGACY_ONLY, status=400)
        return await then(got) if then is not None else None

    return answer


async def test_a_call_that_asks_waits_for_its_own_client_only(tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def answer(got: Received) -> Response | None:
        if got.method == "tools/call":
            id_ = got.message["id"]
            ask = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {"message": "sure?"}}
            done = {"jsonrpc": "2.0", "id": id_, "result": {"content": []}}
            return events(
                b"data: " + json.dumps(ask).encode() + b"\n\n",
                answered,
                b"data: " + json.dumps(done).encode() + b"\n\n",
            )
        if got.verb == "POST" and got.message.get("id") == "q":
            answered.set()
        return None

    able: dict[str, Any] = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
    async with (
        scripted(legacy_only(answer)) as up,
        open_door(tmp_path) as door,
        through(door, up, modern=True) as mine,
        through(door, up, modern=True, session="sesn_2") as theirs,
    ):
        params = {"name": "echo", "arguments": {"text": "x"}, "_meta": able}
        first = (await mine.send(mine.message("tools/call", params))).json()["result"]
        resumed = {**params, "requestState": first["requestState"]}
        key = next(iter(first["inputRequests"]))
        yes = {"inputResponses": {key: {"action": "accept", "content": {}}}}
        stolen = await theirs.send(theirs.message("tools/call", {**resumed, **yes}))
        other = await mine.send(mine.message("tools/call", {**resumed, **yes, "arguments": {"text": "y"}}))
        still = (await mine.send(mine.message("tools/call", resumed))).json()["result"]
        resumed["requestState"] = still["requestState"]
        done = await mine.send(mine.message("tools/call", {**resumed, **yes}))
        replayed = await mine.send(mine.message("tools/call", {**resumed, **yes}))

    assert first["resultType"] == "input_required"
    assert first["inputRequests"][key] == {"method": "elicitation/create", "params": {"message": "sure?"}}
    assert stolen.json()["error"]["code"] == other.json()["error"]["code"] == replayed.json()["error"]["code"] == -32602
    assert still["inputRequests"] == first["inputRequests"]
    assert done.json()["result"] == {
        "resultType": "complete",
        "content": [],
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "scripted", "version": "1"}},
    }


@pytest.mark.parametrize("calling", [False, True])
async def test_a_question_outside_any_call_never_keeps_a_server_waiting(tmp_path: Path, calling: bool) -> None:
    """It is put to the client if a call is under way, and refused else: there is no other time to ask it."""
    begun, told = asyncio.Event(), asyncio.Event()
    answers: list[dict[str, Any]] = []

    async def answer(got: Received) -> Response | None:
        if got.verb == "GET":
            questions = (
                b'data: {"jsonrpc":"2.0","id":"%s","method":"%s"}\n\n' % (method[:2], method)
                for method in (b"ping", b"roots/list")
            )
            return events(begun, b"".join(questions), asyncio.Event())
        if got.method == "tools/call":
            begun.set()
            done = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[]}}' % got.message["id"]
            return events(told, b"data: " + done + b"\n\n")
        if got.message.get("id") in ("pi", "ro"):
            answers.append(got.message)
            if len(answers) == 2:
                told.set()
        return None

    able: dict[str, Any] = {"io.modelcontextprotocol/clientCapabilities": {"roots": {}}}
    async with (
        asyncio.timeout(10),
        scripted(legacy_only(answer)) as up,
        open_door(tmp_path) as door,
        through(door, up, modern=True) as client,
    ):
        if calling:
            params = {"name": "echo", "arguments": {"text": "x"}, "_meta": able}
            first = (await client.send(client.message("tools/call", params))).json()["result"]
            key, question = next(iter(first["inputRequests"].items()))
            again = {"requestState": first["requestState"], "inputResponses": {key: {"roots": []}}}
            await client.send(client.message("tools/call", {**params, **again}))
        else:
            await client.send(client.message("ping-like/none", {"_meta": able}))
            begun.set()
            await told.wait()

    by_id = {one["id"]: one for one in answers}
    assert by_id["pi"]["result"] == {}
    if calling:
        assert question == {"method": "roots/list", "params": {}}
        assert by_id["ro"]["result"] == {"roots": []}
    else:
        assert by_id["ro"]["error"]["code"] == -32601


async def test_a_header_that_contradicts_an_argument_is_refused_before_an_older_server_sees_it(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    async with (
        scripted(legacy_only()) as up,
        open_door(tmp_path) as door,
        through(door, up, modern=True) as client,
    ):
        up.tools.append({"name": "put", "inputSchema": schema})
        for said in ("us", "", "=?base64?ZXU?="):
            got = await client.call("put", {"region": "eu"}, **{"mcp-param-region": said})
            assert (got.status_code, got.json()["error"]["code"]) == (400, -32020), said
        refused = up.calls().copy()
        good = await client.call("put", {"region": "eu"}, **{"mcp-param-region": "=?base64?ZXU=?="})

    assert refused == []
    assert good.json()["result"]["resultType"] == "complete"


async def test_a_client_that_did_not_say_it_can_be_asked_is_not(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    answered = asyncio.Event()

    async def answer(got: Received) -> Response | None:
        if got.method == "tools/call":
            ask = {"jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage", "params": {}}
            done = {"jsonrpc": "2.0", "id": got.message["id"], "result": {"content": []}}
            return events(
                b"data: " + json.dumps(ask).encode() + b"\n\n",
                answered,
                b"data: " + json.dumps(done).encode() + b"\n\n",
            )
        if got.verb == "POST" and got.message.get("id") == "q":
            told.append(got.message)
            answered.set()
        return None

    async with (
        scripted(legacy_only(answer)) as up,
        open_door(tmp_path) as door,
        through(door, up, modern=True) as client,
    ):
        got = await client.call("echo", {"text": "x"})

    assert got.json()["result"]["resultType"] == "complete"
    assert told[0]["error"]["code"] == -32601


async def test_hanging_up_cancels_the_call_of_an_older_server(tmp_path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(got: Received) -> Response | None:
        if got.method == "tools/call":
            begun.set()
            return events(b": begun\n\n", asyncio.Event())
        if got.method == "notifications/cancelled":
            cancelled.set()
        return None

    async with (
        scripted(legacy_only(answer)) as up,
        open_door(tmp_path) as door,
        through(door, up, modern=True) as client,
    ):
        message = client.message("tools/call", {"name": "echo", "arguments": {"text": "x"}})
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(client.send(message))
            await begun.wait()
            call.cancel()
        async with asyncio.timeout(5):
            await cancelled.wait()

    told = next(one.message for one in up.received if one.method == "notifications/cancelled")
    assert told["params"]["requestId"] == up.calls()[0].message["id"]


async def test_changes_reach_a_listening_client_of_the_newer_era(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.verb != "GET":
            return None
        changed = b'data: {"jsonrpc":"2.0","method":"notifications/%s/list_changed"}\n\n'
        return events(changed % b"prompts", changed % b"tools", asyncio.Event())

    limits = Limits(stream_s=0.5)
    async with (
        scripted(legacy_only(answer)) as up,
        open_door(tmp_path, limits=limits) as door,
        through(door, up, modern=True) as client,
    ):
        params = {"notifications": {"toolsListChanged": True}}
        got = await client.send(client.message("subscriptions/listen", params))

    shown = [json.loads(line[6:]) for line in got.text.splitlines() if line.startswith("data: ")]
    assert shown[0]["method"] == "notifications/subscriptions/acknowledged"
    assert shown[0]["params"]["notifications"] == {"toolsListChanged": True}
    assert shown[-1]["result"]["resultType"] == "complete"
    assert "prompts" not in got.text


async def test_an_event_stream_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    async def answer(got: Received) -> Response | None:
        if got.verb == "GET":
            return events(b"event: endpoint\ndata: http://127.0.0.1:9/steal\n\n", asyncio.Event())
        return Response(status_code=405)

    async with scripted(answer) as up, open_door(tmp_path) as door:
        door.credentials.tokens[up.url] = CANARY
        async with through(door, up) as client:
            got = await client.initialize()

    assert got.status_code == 502
    assert "another host" in got.json()["error"]["message"]


@pytest.mark.bubblewrap
async def test_a_stdio_server_sees_its_credential_and_nothing_else_of_ours(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the proxy")
    (tmp_path / "home").mkdir()
    server = StdioServer(
        "seen",
        "/usr/bin/python3",
        ("-c", SEEN, str(tmp_path / "secret")),
        "TOKEN",
        {"MODE": "x"},
        network=False,
        protocol="legacy",
    )
    async with open_door(tmp_path / "home", stdio={"seen": server}) as door:
        door.credentials.tokens["stdio:seen"] = CANARY
        async with through(door, Upstream("stdio:seen")) as client:
            got = (await client.initialize()).json()["result"]["seen"]

    assert got["env"] == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/server",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "MODE": "x",
        "TOKEN": "[redacted]",
        **{key: value for key, value in got["env"].items() if key in ("PWD", "LC_CTYPE", "OLDPWD")},
    }
    assert (got["secret"], got["root"]) == (False, False)
    assert got["pids"] <= 3


# A server that has its credential, and is careless with it.
CARELESS = """
import hashlib, json, os, sys
token = os.environ["TOKEN"]
print("starting with", token, "a line for people", flush=True)
print("starting with", token, file=sys.stderr, flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        info = {"name": token, "version": hashlib.sha256(token.encode()).hexdigest()}
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info, "instructions": token}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@pytest.mark.bubblewrap
async def test_the_credential_of_a_stdio_server_is_in_its_environment_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server = StdioServer("careless", "/usr/bin/python3", ("-c", CARELESS), "TOKEN", protocol="legacy")
    async with open_door(tmp_path, stdio={"careless": server}) as door:
        door.credentials.tokens["stdio:careless"] = CANARY
        async with through(door, Upstream("stdio:careless")) as client:
            got = await client.initialize()
            seen = await asyncio.to_thread(seen_by_everybody)
        lines = await door.lines()

    # It has it, and has shown it everywhere that it can.
    assert got.json()["result"]["serverInfo"]["version"] == sha256(CANARY.encode()).hexdigest()
    assert got.json()["result"]["instructions"] == "[redacted]"
    assert "starting with [redacted]" in caplog.text
    for text in (got.text, caplog.text, str(seen), str(dict(os.environ)), str(lines), everything_in(tmp_path)):
        assert CANARY not in text


def seen_by_everybody() -> list[Any]:
    """The arguments of every process, and the environment that ours was started with."""
    found: list[Any] = [psutil.Process().environ()]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.append(process.cmdline())
    return found


def everything_in(place: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in place.rglob("*") if path.is_file())


@pytest.mark.bubblewrap
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_stdio_server_that_is_slow_to_start_is_still_found_to_be_of_the_newer_era(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(holding, "_PROBE_S", 0.01)
    async with (
        asyncio.timeout(30),
        open_door(tmp_path, stdio={"every": every()}) as door,
        client_of(door, "stdio:every", mode) as client,
    ):
        assert text_of(await client.call_tool("echo", {"text": "hi"})) == "hi"


@pytest.mark.bubblewrap
async def test_a_stdio_server_that_keeps_crashing_is_left_alone_for_a_while(tmp_path: Path) -> None:
    server = StdioServer("crash", "/bin/false", protocol="legacy")
    async with open_door(tmp_path, stdio={"crash": server}) as door, through(door, Upstream("stdio:crash")) as client:
        answers = [(await client.initialize()).json()["error"]["message"] for _ in range(5)]

    assert "has ended" in answers[0]
    assert "keeps ending" in answers[-1]


@pytest.mark.bubblewrap
async def test_a_line_that_never_ends_ends_the_server(tmp_path: Path) -> None:
    server = StdioServer("flood", "/bin/sh", ("-c", "cat /dev/zero"), protocol="legacy")
    async with (
        open_door(tmp_path, stdio={"flood": server}, limits=Limits(line=1 << 20)) as door,
        through(door, Upstream("stdio:flood")) as client,
    ):
        got = await client.initialize()

    assert "too long" in got.json()["error"]["message"]


@pytest.mark.bubblewrap
async def test_a_stdio_server_ends_with_its_session(tmp_path: Path) -> None:
    async with (
        open_door(tmp_path, stdio={"every": every()}) as door,
        through(door, Upstream("stdio:every"), modern=True) as client,
    ):
        await client.call("echo", {"text": "x"})
        before = await running(EVERYTHING)
        await door.registry.revoke_session("sesn_1")
        assert before
        await gone(before)


async def running(text: str) -> list[int]:
    """Which of our processes run this program."""

    def look() -> list[int]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if text in process.cmdline():
                    found.append(process.pid)
        return found

    return await asyncio.to_thread(look)


async def gone(pids: list[int]) -> None:
    """Wait until all of these have ended."""

    def wait() -> None:
        found = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        _, alive = psutil.wait_procs(found, timeout=10)
        assert not alive

    await asyncio.to_thread(wait)


async def test_a_server_that_the_config_does_not_name_is_not_run(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door, through(door, Upstream("stdio:unknown")) as client:
        got = await client.initialize()

    assert got.status_code == 502
    assert "no stdio server of that name" in got.json()["error"]["message"]


async def test_without_a_session_an_older_client_is_told_to_begin_one(tmp_path: Path) -> None:
    async with (
        open_door(tmp_path, stdio={"every": every()}) as door,
        bare(f"{door.url}/up", await door.token({"up": "stdio:every"})) as client,
    ):
        got = await client.send(client.message("tools/list"))

    assert got.status_code == 400
    assert "initialize" in got.json()["error"]["message"]
