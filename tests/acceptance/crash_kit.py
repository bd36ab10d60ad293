"""What the tests of crashes share: a home whose server is killed and started again, seen from outside.

The server is a process of its own, over its own SQLite and real sandboxes. The model runs in the test: a scripted
Messages API, as strict as the real one, which is asked again after every restart.
"""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import docker
import httpx2
import pytest
from docker.errors import NotFound
from galley_sandbox.bubblewrap import state as bubblewrap_state
from galley_sandbox.bubblewrap.driver import Bubblewrap, BubblewrapSandbox
from galley_sandbox.docker.container import LABEL_HOME, identity_of
from galley_sandbox.docker.driver import Docker, DockerSandbox
from galley_sandbox.docker.engine import Engine
from galley_sandbox.port import Acknowledged, Hand, Sandbox
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import Answer
from galley_server.demo.rules import Rules, read_rules
from galley_server.demo.transcript import JSON, Request
from galley_server.ids import new_id
from galley_server.log.chain import ChainKey
from galley_server.log.verify import reading, verify
from galley_server.state import StateFiles

from tests.acceptance.server_process import GALLEY, environment

DriverName: TypeAlias = Literal["docker", "bubblewrap"]
Event: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
READY_S = 30.0
PATIENCE_S = 60.0
# Other tests share the cores of a parallel run; the claim is about a machine of one's own.
MOVES_WITHIN_S = 9.0 if "PYTEST_XDIST_WORKER" in os.environ else 3.0
TOOLSET: JSON = {
    "type": "agent_toolset_20260401",
    "default_config": {"enabled": True, "permission_policy": {"type": "always_allow"}},
}
BOTH_DRIVERS = [
    pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
    pytest.param("docker", marks=pytest.mark.docker),
]
RULES: JSON = {
    "rules": [
        {
            "when": {"asked": r"^run: (?P<command>(?s:.+))", "results": 0},
            "reply": {"tools": [{"name": "bash", "input": {"command": "{{command}}"}}]},
        },
        {
            "when": {"asked": r"^both: (?P<one>.+) \+\+ (?P<two>.+)", "results": 0},
            "reply": {
                "tools": [
                    {"name": "bash", "input": {"command": "{{one}}"}},
                    {"name": "bash", "input": {"command": "{{two}}"}},
                ]
            },
        },
        {"when": {"asked": "^weather", "results": 0}, "reply": {"tools": [{"name": "weather", "input": {}}]}},
        {
            "when": {"asked": "^slowly"},
            "reply": {"text": "one two three four five six", "pace": {"per_token_ms": 150, "chunk_chars": 2}},
        },
        {"when": {"min_results": 1}, "reply": {"text": "It said: {{last_result}}"}},
        {"reply": "echo"},
    ]
}


@dataclass(frozen=True, slots=True)
class Row:
    seq: int
    id: str
    type: str
    body: Event


@dataclass(frozen=True, slots=True)
class Fuse:
    """Kills the server before or after the first append with such a row, once it is armed. See `fused_server`."""

    when: Literal["before", "after"]
    row_type: str


@dataclass(slots=True)
class Watched:
    """The scripted model, and what it was asked."""

    rules: Rules
    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.rules(request)


@dataclass(frozen=True, slots=True)
class Server:
    process: Process
    started: float
    ready: float

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.died()

    async def died(self) -> None:
        """Wait for an end by SIGKILL, whoever sent it."""
        async with asyncio.timeout(PATIENCE_S):
            assert await self.process.wait() == -signal.SIGKILL

    async def stop(self) -> float:
        """Stop it as a service manager does, and return the seconds that it took."""
        began = time.monotonic()
        self.process.terminate()
        async with asyncio.timeout(10):
            assert await self.process.wait() == 0
        return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Found:
    """A sandbox as the machine sees it."""

    sandbox: Sandbox
    pid: int
    """Of the hand; 0 if it does not run."""


@dataclass(slots=True)
class Site:
    """One home: its server is always at the same address, and dies often."""

    home: Path
    scratch: Path
    driver: DriverName
    model: Watched
    model_url: str
    port: int
    http: httpx2.AsyncClient

    @property
    def files(self) -> StateFiles:
        return StateFiles(self.home)

    @property
    def armed(self) -> Path:
        return self.scratch / "armed"

    def said(self) -> str:
        """What the servers wrote on stderr."""
        path = self.scratch / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @asynccontextmanager
    async def serving(self, fuse: Fuse | None = None) -> AsyncIterator[Server]:
        """Run the server. When the block is left it is stopped, unless it is dead by then."""
        words = [*GALLEY]
        if fuse is not None:
            words = [sys.executable, "-m", "tests.acceptance.fused_server"]
            words += [fuse.when, fuse.row_type, str(self.armed)]
        given = {
            "GALLEY_SANDBOX": self.driver,
            "GALLEY_BROKER": "off",
            "GALLEY_MODEL_API_KEY": "test-key",
            "GALLEY_MODEL_BASE_URL": self.model_url,
        }
        started = time.monotonic()
        with (self.scratch / "server.log").open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                *words, "serve", "--port", str(self.port), env=environment(self.home, **given), cwd=ROOT,
                stdin=DEVNULL, stdout=PIPE, stderr=said,
            )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
            assert line.startswith(b"galley ready"), self.said()[-2000:]
            server = Server(process, started, time.monotonic())
            self.http.headers["x-api-key"] = self.files.api_key.read_text().strip()
            yield server
            if process.returncode is None:
                await server.stop()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    # What a client does.

    async def post(self, path: str, body: JSON, *, key: str | None = None) -> Event:
        headers = {} if key is None else {"idempotency-key": key}
        answer = await self.http.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        made: Event = answer.json()
        return made

    async def session(self, *tools: JSON) -> str:
        """A new session whose agent has these tools: all of the sandbox's if none are given."""
        agent = await self.post(
            "/v1/agents", {"name": "cook", "model": "scripted-1", "tools": list(tools) or [TOOLSET]}
        )
        place = await self.post("/v1/environments", {"name": new_id("env")})
        made = await self.post("/v1/sessions", {"agent": agent["id"], "environment_id": place["id"]})
        return str(made["id"])

    async def send(self, session: str, *events: JSON, key: str | None = None) -> Sequence[Event]:
        answer = await self.post(f"/v1/sessions/{session}/events", {"events": list(events)}, key=key)
        sent: list[Event] = answer["data"]
        return sent

    async def say(self, session: str, text: str, *, key: str | None = None) -> Event:
        (sent,) = await self.send(
            session, {"type": "user.message", "content": [{"type": "text", "text": text}]}, key=key
        )
        return sent

    async def ask(self, session: str, text: str) -> str:
        """Say something and return the answer, when the session has become idle with it."""
        sent = await self.say(session, text)
        events = await self.until(session, "session.status_idle", after=sent["id"])
        return answer_in(events)

    @asynccontextmanager
    async def listening(
        self, session: str, *, after: str = "row_1", previews: bool = False
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """What happens from behind a cursor; from the start of the block on, no preview is missed either."""
        params: dict[str, str] = {"after_event_id": after}
        if previews:
            params["event_deltas[]"] = "agent.message"
        url = f"/v1/sessions/{session}/events/stream"
        async with (
            asyncio.timeout(PATIENCE_S),
            self.http.stream("GET", url, params=params, timeout=httpx2.Timeout(10, read=None)) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            yield _events(answer)

    async def until(self, session: str, event_type: str, *, after: str = "row_1") -> list[Event]:
        """Everything behind a cursor, up to the first event of a type."""
        async with self.listening(session, after=after) as events:
            return await read_until(events, event_type)

    async def until_dispatched(self, session: str) -> None:
        """Wait for a row that no client sees."""
        async with asyncio.timeout(PATIENCE_S):
            while not of_type(self.rows(session), "internal.dispatch"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def listed(self, session: str) -> list[Event]:
        events: list[Event] = []
        page: str | None = None
        while True:
            params = {"limit": "1000", "order": "asc"} | ({} if page is None else {"page": page})
            answer = (await self.http.get(f"/v1/sessions/{session}/events", params=params)).json()
            events += answer["data"]
            page = answer["next_page"]
            if page is None:
                return events

    async def archive(self, session: str) -> None:
        await self.post(f"/v1/sessions/{session}/archive", {})

    # What the log says, whether a server runs or not.

    def rows(self, session: str) -> list[Row]:
        with closing(sqlite3.connect(f"file:{self.files.database}?mode=ro", uri=True)) as connection:
            found = connection.execute(
                "SELECT rows.seq, rows.id, type, body FROM rows JOIN sessions ON sessions.pk = rows.session"
                " WHERE sessions.id = ? ORDER BY rows.seq",
                (session,),
            ).fetchall()
        return [Row(seq, id, row_type, json.loads(body)) for seq, id, row_type, body in found]

    def proven(self, session: str) -> int:
        """Verify the chain and return its last position."""
        with reading(self.files.database) as connection:
            return verify(connection, ChainKey.open(self.files.chain_key), session).head.seq

    # What the machine says of the sandboxes.

    async def sandboxes(self, session: str | None = None) -> list[Found]:
        found = await (self._containers() if self.driver == "docker" else asyncio.to_thread(self._hands))
        return [one for one in found if session in (None, one.sandbox.session_id)]

    def _hands(self) -> list[Found]:
        read = ((folder, bubblewrap_state.read(folder)) for folder in self.files.sandboxes.glob("sbx_*"))
        return [
            Found(BubblewrapSandbox(folder, state, state.process), state.process.pid)
            for folder, state in read
            if state is not None and state.process is not None
        ]

    async def _containers(self) -> list[Found]:
        wanted = {"label": f"{LABEL_HOME}={self.files.home_id.read_text().strip()}"}

        def look() -> list[Found]:
            found = []
            client = docker.from_env()
            for entry in client.api.containers(all=True, filters=wanted):
                identity = identity_of(entry["Names"][0], entry["Labels"])
                if identity is not None:
                    found.append(Found(DockerSandbox(Engine(), identity), int(entry["State"] == "running")))
            client.close()
            return found

        return await asyncio.to_thread(look)

    async def kill_hand(self, session: str) -> None:
        """End the hand and nothing else: the container, or the sandbox's folder, stays behind."""
        (found,) = await self.sandboxes(session)
        if self.driver == "docker":
            await asyncio.to_thread(_kill_container, found.sandbox.id)
        else:
            os.kill(found.pid, signal.SIGKILL)

    async def remove_sandbox(self, session: str) -> None:
        """Have the sandbox gone without a trace, as after `docker rm -f`."""
        (found,) = await self.sandboxes(session)
        home_id = self.files.home_id.read_text().strip()
        driver = Docker(home_id) if self.driver == "docker" else Bubblewrap(self.files.sandboxes, home_id)
        await driver.destroy(found.sandbox.id)
        await driver.close()

    @asynccontextmanager
    async def hand(self, session: str) -> AsyncIterator[Hand]:
        """A line of our own to the hand, beside the server's."""
        (found,) = await self.sandboxes(session)
        async with asyncio.timeout(PATIENCE_S), found.sandbox.connect() as hand:
            yield hand

    async def wait_for_file(self, session: str, name: str) -> None:
        """Wait until a command has made a file, in a shell of our own: the session's is busy."""
        async with self.hand(session) as hand:
            waiting = f"until [ -e {name} ]; do sleep 0.01; done"
            result = await hand.call(new_id("sevt"), "bash", {"command": waiting}, shell="beside")
            assert not result.is_error, result.text

    async def make_file(self, session: str, name: str) -> None:
        async with self.hand(session) as hand:
            await hand.call(new_id("sevt"), "write", {"file_path": name, "content": ""})

    async def until_acknowledged(self, session: str, calls: Sequence[str]) -> None:
        """Wait until the hand keeps none of these results any more."""
        async with self.hand(session) as hand:
            for call in calls:
                while not isinstance(await hand.query(call), Acknowledged):
                    pass

    async def count(self, session: str, name: str = "count") -> list[str]:
        """The lines of the file that commands add to; each is one effect."""
        async with self.hand(session) as hand:
            result = await hand.call(
                new_id("sevt"), "bash", {"command": f"cat {name} 2>/dev/null; true"}, shell="beside"
            )
            return result.text.split()


def _kill_container(name: str) -> None:
    client = docker.from_env()
    container = client.containers.get(name)
    container.kill()
    with suppress(NotFound):  # the server may have noticed and removed it already
        container.wait(timeout=20)
    client.close()


@asynccontextmanager
async def open_site(folder: Path, driver: DriverName, *, home: Path | None = None) -> AsyncIterator[Site]:
    """Whatever a test leaves behind is removed at the end."""
    model = Watched(read_rules(RULES))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_scripted(model))
        client = await stack.enter_async_context(httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30))
        site = Site(home or folder / "home", folder, driver, model, url, port, client)
        try:
            yield site
        finally:
            print(site.said()[-20_000:])  # noqa: T201  # pytest shows it with a failure
            for found in await site.sandboxes() if site.files.home_id.exists() else []:
                await site.remove_sandbox(found.sandbox.session_id)


async def _events(answer: httpx2.Response) -> AsyncIterator[Event]:
    """The frames of a stream; each event has its cursor under `row`, a preview None."""
    row: str | None = None
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            row = value
        elif name == "data":
            yield {**json.loads(value), "row": row}
            row = None


async def read_until(events: AsyncIterator[Event], event_type: str) -> list[Event]:
    read: list[Event] = []
    async for event in events:
        read.append(event)
        if event["type"] == event_type:
            return read
    raise AssertionError(f"the stream ended after {[event['type'] for event in read]}")


def of_type(rows: Sequence[Row], row_type: str) -> list[Row]:
    return [row for row in rows if row.type == row_type]


def texts(event: Mapping[str, Any]) -> str:
    return "\n".join(block["text"] for block in event.get("content", []) if block["type"] == "text")


def answer_in(events: Sequence[Event]) -> str:
    return "\n".join(texts(event) for event in events if event["type"] == "agent.message")


def assert_whole(rows: Sequence[Row], *, errors: Collection[str] = ()) -> None:
    """What holds of every log of a session at rest, however often its server died."""
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert [row.body["error"]["type"] for row in of_type(rows, "session.error")] == list(errors)
    calls = [row.id for row in of_type(rows, "agent.tool_use")]
    answered = [row.body["tool_use_id"] for row in of_type(rows, "agent.tool_result")]
    assert sorted(answered) == sorted(calls)
    dispatched = [row.body["tool_use_id"] for row in of_type(rows, "internal.dispatch")]
    assert len(dispatched) == len(set(dispatched))
    begun = [row.id for row in of_type(rows, "span.model_request_start")]
    ended = [row.body["model_request_start_id"] for row in of_type(rows, "span.model_request_end")]
    assert begun == ended


async def moved(site: Site, session: str, *, beyond: int, server: Server) -> float:
    """Wait for the first new row that a client sees, and return the seconds from when the server was ready."""
    async with site.listening(session, after=f"row_{beyond}") as events:
        await anext(events)
    return time.monotonic() - server.ready
