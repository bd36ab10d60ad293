"""One real client at work behind the door, in a place without any network but its own loopback.

    python -m tests.integration.mcp_agents_program WHAT HOME -- COMMAND...

In the command `{door}` is the URL of a server behind the door and `{token}` a grant for it. What came of it is printed
as one line of JSON: what the client said, what its model was told, and what the server and the audit saw.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from galley_vault_proxy.http.serving import serve
from galley_vault_proxy.mcp_door.pins import PinPlace, pin
from starlette.responses import Response, StreamingResponse

from tests.integration.mcp_agents_model import Model
from tests.integration.mcp_door_kit import CANARY, SERVICE_KEY, open_door
from tests.integration.mcp_door_upstream import ECHO, Received, Upstream, reply, scripted

BIG: Final = {"name": "big", "inputSchema": {"type": "object"}}
SLOW: Final = {"name": "slow", "inputSchema": {"type": "object"}}
MODEL_PORT: Final = 18400
_PATIENCE_S: Final = 60


@dataclass
class Report:
    status: int | None = None
    out: str = ""
    error: str = ""
    results: list[str] = field(default_factory=list)
    offered: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)
    versions: list[str | None] = field(default_factory=list)
    hung_up: bool = False
    lines: list[dict[str, object]] = field(default_factory=list)


class Server:
    """The one behind the door. `begun`: its slow tool is at work; `left`: whoever called it is gone."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, got: Received) -> Response | None:
        if got.method == "notifications/cancelled":
            self.left.set()
        if got.method != "tools/call":
            return None
        name = got.message["params"]["name"]
        if name == "big":
            text = [{"type": "text", "text": "0123456789" * 20_000}]
            return reply(got.message, {"content": text, "resultType": "complete"})
        if name == "slow":
            return StreamingResponse(self._slowly(), media_type="text/event-stream")
        return None

    async def _slowly(self) -> Any:
        try:
            yield b": begun\n\n"
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.left.set()


async def main(what: str, home: Path, command: list[str]) -> Report:
    server, model, report, closing = Server(), Model(), Report(), asyncio.Event()
    async with (
        scripted(server) as up,
        serve(model, host="127.0.0.1", port=MODEL_PORT, key=SERVICE_KEY, closing=closing),
        open_door(home) as door,
    ):
        up.tools += [dict(BIG), dict(SLOW)]
        door.credentials.tokens[up.url] = CANARY
        if what == "drifted":
            # As it was when somebody decided to use it.
            before = pin("echo", {**ECHO, "description": "Said what it was told"})
            await door.pins.add(PinPlace(up.url, door.credentials.id_of(up.url)), [before])
        token = await door.token({"up": up.url}, tools={"echo", "big", "slow"} if what == "denied" else None)
        words = [word.replace("{door}", f"{door.url}/up").replace("{token}", token) for word in command]
        await run(words, server if what == "slow" else None, report)
        report.results, report.offered = model.results, model.tools
        report.lines = await door.lines()
        saw(up, report)
    return report


async def run(command: list[str], slow: Server | None, report: Report) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as tasks:
            said = tasks.create_task(process.communicate())
            if slow is not None:
                await slow.begun.wait()
                # As from a terminal: to all that the client is made of.
                os.killpg(process.pid, signal.SIGINT)
                await slow.left.wait()
                report.hung_up = True
        out, error = said.result()
        report.status, report.out, report.error = process.returncode, out.decode(), error.decode()
    finally:
        # Its group is its own: what it has started ends with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def saw(up: Upstream, report: Report) -> None:
    report.calls = [one.message["params"]["name"] for one in up.calls()]
    report.credentials = [one.headers.get("authorization") for one in up.received]
    report.versions = [one.headers.get("mcp-protocol-version") for one in up.calls()]


if __name__ == "__main__":
    split = sys.argv.index("--")
    found = asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[split + 1 :]))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
