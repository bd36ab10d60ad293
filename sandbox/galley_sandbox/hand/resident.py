"""The hand itself: its calls, its shells, its file workers, and what it does with each request."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from galley_sandbox.hand import file_tools, verdict, worker
from galley_sandbox.hand.inputs import SCHEMAS, complaint
from galley_sandbox.hand.ledger import Ledger, Refused
from galley_sandbox.hand.paths import Places, ToolError
from galley_sandbox.hand.results import bounded, result_json
from galley_sandbox.hand.shell import MAX_COMMAND, Job, Shell
from galley_sandbox.hand.surroundings import Surroundings
from galley_sandbox.hand.tunnels import Tunnels

if TYPE_CHECKING:
    from typing import Any

    from galley_sandbox.hand.config import Config
    from galley_sandbox.hand.loop import Loop

BASH_TIMEOUT_S = 120.0
MAX_RESULT = 40 * 1024 * 1024
MAX_SHELLS = 64


class Resident:
    """Knows every call and runs each at most once."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self.loop = loop
        self.config = config
        self.surroundings = Surroundings()
        self.tunnels = Tunnels(loop)
        self._ledger = Ledger()
        self._gauges = verdict.Gauges(config.memory_gauge, config.pids_gauge)
        self._shells: dict[str, Shell] = {}
        self._cancels: dict[str, Callable[[], None]] = {}
        self._places = Places(config.workspace, (config.session_dir, "/tmp"), (config.uploads, config.tool_results))

    def call(self, meta: dict[str, Any], body: bytes, waiter: Callable[[bytes], None]) -> None:
        """Run or join a call. Raises Refused before anything has run."""
        call_id, tool = str(meta.get("id", "")), str(meta.get("tool", ""))
        shell = str(meta.get("shell", "main"))
        if tool not in SCHEMAS:
            raise Refused(f"there is no tool {tool!r} in this sandbox")
        digest = hashlib.sha256(json.dumps([tool, shell]).encode() + body).digest()
        if not self._ledger.begin(call_id, digest, waiter):
            return
        try:
            self._start(call_id, tool, shell, meta.get("timeout_s"), body)
        except Exception as e:
            # The boundary of a call: it has begun, so it must end with a result.
            traceback.print_exc()
            self._finish(call_id, result_json(f"{tool}: the hand failed: {type(e).__name__}", is_error=True))

    def _start(self, call_id: str, tool: str, shell: str, limit: object, body: bytes) -> None:
        wall_s = self.config.wall_s if not isinstance(limit, (int, float)) else min(float(limit), self.config.wall_s)
        given = _parse_input(body)
        wrong = f"{tool}: the input must be a JSON object" if given is None else complaint(tool, given)
        if given is None or wrong is not None:
            self._finish(call_id, result_json(wrong or "", is_error=True))
        elif tool == "bash":
            self._call_bash(call_id, shell, given, wall_s)
        else:
            self._call_file_tool(call_id, tool, given, wall_s)

    def leave(self, call_id: str, waiter: Callable[[bytes], None]) -> None:
        self._ledger.leave(call_id, waiter)

    def query(self, call_id: str) -> tuple[str, bytes | None]:
        return self._ledger.state(call_id)

    def acknowledge(self, call_id: str) -> None:
        self._ledger.acknowledge(call_id)

    def cancel(self, call_id: str) -> None:
        action = self._cancels.get(call_id)
        if action is not None:
            action()

    def _finish(self, call_id: str, result: bytes) -> None:
        self._cancels.pop(call_id, None)
        self._ledger.finish(call_id, result)

    def _call_bash(self, call_id: str, shell_name: str, given: dict[str, Any], wall_s: float) -> None:
        command = given.get("command") or ""
        restart = bool(given.get("restart"))
        wrong = None
        if not restart and not command:
            wrong = "bash: command is required"
        elif len(command) > MAX_COMMAND:
            wrong = f"bash: the command is longer than {MAX_COMMAND} characters; write it to a file and run that"
        elif "\0" in command:
            wrong = "bash: the command holds a NUL character"
        elif shell_name not in self._shells and len(self._shells) >= MAX_SHELLS:
            wrong = f"bash: {MAX_SHELLS} shells are open already"
        if wrong is not None:
            self._finish(call_id, result_json(wrong, is_error=True))
            return
        asked = given.get("timeout_ms") or 0
        timeout_s = asked / 1000.0 if asked > 0 else BASH_TIMEOUT_S
        timeout_text = f"bash: bash command timed out after {timeout_s}s"
        if wall_s < timeout_s:
            timeout_s, timeout_text = wall_s, verdict.exceeded("wall_time", f"bash: ended after {wall_s}s")
        shell = self._shells.get(shell_name)
        if shell is None:
            shell = self._shells[shell_name] = Shell(self.loop, self.config, self._gauges, self.surroundings)
        self._cancels[call_id] = lambda: shell.cancel(call_id)
        shell.submit(
            Job(
                call_id,
                None if restart else command,
                timeout_s,
                timeout_text,
                lambda result: self._finish(call_id, result),
            )
        )

    def _call_file_tool(self, call_id: str, tool: str, given: dict[str, Any], wall_s: float) -> None:
        work = _FileCall(self, call_id, tool, given, lambda result: self._finish(call_id, result))
        self._cancels[call_id] = work.cancel
        work.start(wall_s, self._gauges, self._places)


def _parse_input(body: bytes) -> dict[str, Any] | None:
    try:
        given = json.loads(body)
    except ValueError:
        return None
    return given if isinstance(given, dict) else None


class _FileCall:
    """One run of a file tool in a worker of its own."""

    def __init__(
        self, resident: Resident, call_id: str, tool: str, given: dict[str, Any], done: Callable[[bytes], None]
    ) -> None:
        self._loop = resident.loop
        self._config = resident.config
        self._call_id = call_id
        self._tool = tool
        self._given = given
        self._done = done
        self._out = bytearray()
        self._killed_because: str | None = None

    def start(self, wall_s: float, gauges: verdict.Gauges, places: Places) -> None:
        self._gauges = gauges
        self._before = gauges.read()
        self._deadline = self._loop.later(wall_s, self._too_late)
        cpu_s = min(file_tools.GREP_CPU_S, self._config.cpu_s) if self._tool == "grep" else self._config.cpu_s
        try:
            self._worker = worker.Worker(
                self._loop,
                self._config,
                lambda _stdin, stdout: self._body(places, stdout),
                as_tool=True,
                on_output=self._more,
                on_end=self._ended,
                cpu_s=cpu_s,
            )
        except OSError as e:
            self._deadline.cancel()
            text = verdict.exceeded("pids", f"{self._tool}: {e.strerror}")
            self._done(result_json(text, is_error=True))
            return
        self._worker.close_input()

    def cancel(self) -> None:
        self._kill(f"{self._tool}: cancelled")

    def _too_late(self) -> None:
        self._kill(verdict.exceeded("wall_time", f"{self._tool}: took too long"))

    def _kill(self, because: str) -> None:
        if self._killed_because is None:
            self._killed_because = because
            self._worker.kill()

    def _body(self, places: Places, stdout: int) -> None:
        """In the child."""
        try:
            content = file_tools.run(self._tool, places, self._given)
            is_error = False
        except ToolError as e:
            content = str(e)
            if content.endswith(("no space left on device", "disk quota exceeded", "file too large")):
                content = verdict.exceeded("disk", content)
            is_error = True
        except MemoryError:
            content, is_error = verdict.exceeded("memory", self._tool), True
        except ValueError as e:
            # Text that is no Unicode: half a surrogate pair passes JSON, and no file takes it.
            content, is_error = f"{self._tool}: {e}", True
        if isinstance(content, str):
            content = bounded(content, self._config.tool_results, self._call_id)
        worker.write_all(stdout, result_json(content, is_error=is_error))

    def _more(self, data: bytes) -> None:
        self._out += data
        if len(self._out) > MAX_RESULT:
            self._out.clear()
            self._kill(verdict.exceeded("output", f"{self._tool}: the result is too large"))

    def _ended(self, status: int) -> None:
        self._deadline.cancel()
        if self._killed_because is not None:
            self._done(result_json(self._killed_because, is_error=True))
        elif status == 0 and self._out:
            self._done(bytes(self._out))
        else:
            self._done(result_json(self._post_mortem(status), is_error=True))

    def _post_mortem(self, status: int) -> str:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number == signal.SIGXCPU:
            if self._tool == "grep" and self._config.cpu_s > file_tools.GREP_CPU_S:
                return f"grep: timed out after {file_tools.GREP_CPU_S}s"
            return verdict.exceeded("cpu_time", self._tool)
        if self._gauges.read().memory_kills > self._before.memory_kills:
            return verdict.exceeded("memory", self._tool)
        return f"{self._tool}: the tool's process ended without a result (status {status})"
