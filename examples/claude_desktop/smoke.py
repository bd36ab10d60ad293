#!/usr/bin/env python3
"""Drive `galley mcp` as Claude Desktop would, and say whether it answers as it should. Standard library only.

    python3 smoke.py                                      the galley command of this checkout
    python3 smoke.py --config claude_desktop_config.json  exactly what that file would start
    python3 smoke.py -- /path/to/galley mcp               any command

It makes one session with each protocol version that clients speak, reads its events and archives it. No message is
sent, so no model and no sandbox is needed.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOOLS = {
    "list_agents",
    "create_agent",
    "list_environments",
    "create_environment",
    "list_vaults",
    "create_session",
    "send_message",
    "read_events",
    "list_sessions",
    "get_session",
    "confirm_tool",
    "interrupt_session",
    "archive_session",
    "upload_file",
    "download_file",
}
# What Claude Desktop hands to the servers it starts; everything else comes from `env` in its configuration.
PASSED_ON = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "APPDATA", "LOCALAPPDATA", "SYSTEMROOT", "USERPROFILE")
LEGACY = "2025-11-25"
MODERN = "2026-07-28"
ANSWER_S = 45.0


class Failed(Exception):
    """The server did not answer as it should."""


class Client:
    """One connection: a child process, and JSON-RPC lines on its stdin and stdout."""

    def __init__(self, child: "subprocess.Popen[bytes]", meta: Mapping[str, object] | None) -> None:
        self._child = child
        self._meta = meta
        self._buffer = b""
        self._next_id = 0

    def notify(self, method: str) -> None:
        self._send({"jsonrpc": "2.0", "method": method})

    def request(self, method: str, params: Mapping[str, object]) -> dict[str, Any]:
        self._next_id += 1
        body = dict(params) if self._meta is None else {**params, "_meta": self._meta}
        self._send({"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": body})
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = json.loads(self._line(method, deadline))
            if message.get("id") != self._next_id or "method" in message:
                continue  # a notification
            if "error" in message:
                raise Failed(f"{method}: {message['error']['message']}")
            return dict(message["result"])

    def call(self, tool: str, **arguments: object) -> dict[str, Any]:
        result = self.request("tools/call", {"name": tool, "arguments": arguments})
        if result.get("isError"):
            raise Failed(f"{tool}: {result['content'][0]['text']}")
        if "structuredContent" not in result:
            raise Failed(f"{tool}: the answer has no structuredContent")
        return dict(result["structuredContent"])

    def _send(self, message: Mapping[str, object]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        self._child.stdin.flush()

    def _line(self, method: str, deadline: float) -> bytes:
        assert self._child.stdout is not None
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._child.stdout], [], [], left)[0]:
                raise Failed(f"{method}: no answer within {ANSWER_S:.0f} s")
            piece = os.read(self._child.stdout.fileno(), 65536)
            if not piece:
                raise Failed(f"{method}: the command ended with status {self._child.wait()} (its words are above)")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


@contextmanager
def connected(command: Sequence[str], env: Mapping[str, str], meta: Mapping[str, object] | None) -> Iterator[Client]:
    child = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(env))
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield Client(child, meta)
    finally:
        child.stdin.close()  # how a client says goodbye
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def use_legacy(client: Client) -> str:
    found = client.request(
        "initialize",
        {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "galley-smoke", "version": "1"}},
    )
    client.notify("notifications/initialized")
    if found["protocolVersion"] != LEGACY:
        raise Failed(f"initialize: asked for {LEGACY}, got {found['protocolVersion']}")
    return f"{found['serverInfo']['name']} {found['serverInfo']['version']}"


def use_modern(client: Client) -> str:
    found = client.request("server/discover", {})
    if MODERN not in found["supportedVersions"]:
        raise Failed(f"server/discover: {MODERN} is not among {found['supportedVersions']}")
    return ", ".join(found["supportedVersions"])


def play(client: Client) -> str:
    """List the tools, then take one session through its life."""
    names = {tool["name"] for tool in client.request("tools/list", {})["tools"]}
    if not names >= TOOLS:
        raise Failed(f"tools/list: {', '.join(sorted(TOOLS - names))} missing")
    client.call("list_agents")
    session = client.call("create_session", title="smoke")
    session_id = session["session_id"]
    client.call("read_events", session_id=session_id)
    client.call("get_session", session_id=session_id)
    client.call("archive_session", session_id=session_id)
    return str(session_id)


def check(era: str, command: Sequence[str], env: Mapping[str, str]) -> str:
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "galley-smoke", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    began = time.monotonic()
    with connected(command, env, None if era == LEGACY else meta) as client:
        server = use_legacy(client) if era == LEGACY else use_modern(client)
        first = time.monotonic() - began
        session_id = play(client)
    return f"first answer after {first:.2f} s ({server}); made, read and archived {session_id}"


def chosen(arguments: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The command and the environment, as the client would have them."""
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if arguments.config is not None:
        entry = json.loads(arguments.config.read_text())["mcpServers"]["galley"]
        command = [entry["command"], *entry["args"]]
        env.update(entry.get("env", {}))
    else:
        command = arguments.command or [str(HERE.parent.parent / ".venv" / "bin" / "galley"), "mcp"]
    env.update(pair.split("=", 1) for pair in arguments.env)
    return command, env


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive `galley mcp` as Claude Desktop would.")
    parser.add_argument("--config", type=Path, help="a claude_desktop_config.json with a server named galley")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set this for the command too")
    parser.add_argument("command", nargs="*", help="what to start (default: the galley command of this checkout)")
    command, env = chosen(parser.parse_args())
    status = 0
    for era in (LEGACY, MODERN):
        try:
            outcome = f"ok    {era}: {check(era, command, env)}"
        except (Failed, OSError, ValueError, KeyError) as error:
            status = 1
            outcome = f"FAIL  {era}: {error!r}" if isinstance(error, KeyError) else f"FAIL  {era}: {error}"
        sys.stdout.write(outcome + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
