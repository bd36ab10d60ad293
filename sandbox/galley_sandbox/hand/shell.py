"""A persistent bash: commands one after another, each with its own output, exit code and deadline."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from galley_sandbox.hand import hardening, processes, verdict, worker
from galley_sandbox.hand.results import Output, result_json
from galley_sandbox.hand.surroundings import update

if TYPE_CHECKING:
    from galley_sandbox.hand.config import Config
    from galley_sandbox.hand.loop import Loop, Timer
    from galley_sandbox.hand.surroundings import Surroundings

MAX_COMMAND = 1024 * 1024
MAX_QUEUE = 256
_EARLY = 64 * 1024
_BASH = "/bin/bash"
# Descriptors of the shell itself, closed for the commands it runs. High, out of the way of scripts that use 3 to 9.
_OUT, _STATUS = 198, 199
_READ = 64 * 1024


class Job(NamedTuple):
    call_id: str
    command: str | None  # None: restart the shell
    timeout_s: float
    timeout_text: str
    done: Callable[[bytes], None]


class _Pipes(NamedTuple):
    commands: int
    output: int
    status: int
    death: int


class Shell:
    """One bash, with a keeper above it that adopts what its commands leave behind, so that all of it is found."""

    def __init__(self, loop: Loop, config: Config, gauges: verdict.Gauges, surroundings: Surroundings) -> None:
        self._loop = loop
        self._config = config
        self._surroundings = surroundings
        self._told: dict[str, str] = {}  # which of them this bash knows
        self._gauges = gauges
        self._queue: deque[Job] = deque()
        self._job: Job | None = None
        self._keeper = 0
        self._pipes: _Pipes | None = None
        self._usable = False
        self._terminated = False
        self._ending: str | None = None  # set while the shell is being ended: the text the running call gets
        self._serial = 0
        self._status = bytearray()
        self._to_send = b""
        self._early = bytearray()  # printed by background jobs between two commands
        self._output = Output("", "")
        self._deadline: Timer | None = None
        self._before = gauges.read()

    def submit(self, job: Job) -> None:
        if len(self._queue) >= MAX_QUEUE:
            job.done(result_json("bash: too many commands wait for this shell", is_error=True))
            return
        self._queue.append(job)
        self._next()

    def cancel(self, call_id: str) -> None:
        """End the call: drop it if it waits, kill the shell and all it started if it runs."""
        if self._job is not None and self._job.call_id == call_id:
            self._kill("bash: cancelled")
            return
        for job in list(self._queue):
            if job.call_id == call_id:
                self._queue.remove(job)
                job.done(result_json("bash: cancelled", is_error=True))

    def _next(self) -> None:
        if self._job is not None or not self._queue:
            return
        self._job = job = self._queue.popleft()
        if job.command is None:
            self._restart()
        elif self._terminated:
            self._finish(result_json("bash: bash session terminated; restart required", is_error=True))
        else:
            self._run(job, job.command)

    def _run(self, job: Job, command: str) -> None:
        if not self._usable and not self._start():
            return
        self._serial += 1
        self._before = self._gauges.read()
        self._output = Output(self._config.tool_results, job.call_id, early=bytes(self._early))
        self._early.clear()
        self._status.clear()
        # eval keeps a command with a syntax error, or an open quote, from swallowing what follows it. The empty line
        # comes first because bash, after such an error, takes the next word for a plain one, even an opening brace.
        self._to_send += update(self._told, self._surroundings.variables).encode("utf-8", "surrogatepass")
        self._told = self._surroundings.variables
        self._to_send += (
            f"\n{{ builtin eval {shlex.quote(command)}\n}} </dev/null >&{_OUT} 2>&1 {_OUT}>&- {_STATUS}>&-; "
            f"builtin printf '{self._serial} %d\\n' \"$?\" >&{_STATUS}\n"
        ).encode("utf-8", "surrogatepass")
        self._deadline = self._loop.later(job.timeout_s, self._timed_out)
        self._send()

    def _restart(self) -> None:
        if self._keeper:
            self._kill(None)
        else:
            self._restarted()

    def _restarted(self) -> None:
        self._terminated = False
        self._early.clear()
        if self._start():
            self._finish(result_json("bash session restarted", is_error=False))

    def _finish(self, result: bytes) -> None:
        job = self._job
        if job is None:
            return
        self._job = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._output.close()
        job.done(result)
        # A fresh turn, so that a long queue of refused commands does not nest.
        self._loop.later(0, self._next)

    # The shell process

    def _start(self) -> bool:
        """Fork the keeper, which forks bash. False: the running job has got its answer already."""
        pairs: list[tuple[int, int]] = []
        try:
            pairs = [os.pipe() for _ in range(4)]
            pid = os.fork()
        except OSError as e:
            for pair in pairs:
                os.close(pair[0])
                os.close(pair[1])
            self._finish(result_json(verdict.exceeded("pids", f"bash: {e.strerror}"), is_error=True))
            return False
        (cmd_r, cmd_w), (out_r, out_w), (status_r, status_w), (death_r, death_w) = pairs
        if pid == 0:
            _keep(self._config, cmd_r, out_w, status_w, death_w)
        for fd in (cmd_r, out_w, status_w, death_w):
            os.close(fd)
        for fd in (cmd_w, out_r, status_r, death_r):
            os.set_blocking(fd, False)
        self._keeper = pid
        self._usable = True
        self._told = {}
        # With one user for all, only the started program may do this; the hand has done it already otherwise.
        self._to_send = b"{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null\n"
        self._pipes = _Pipes(cmd_w, out_r, status_r, death_r)
        self._loop.on_exit(pid, self._keeper_exited)
        self._loop.watch(out_r, self._on_output)
        self._loop.watch(status_r, self._on_status)
        self._loop.watch(death_r, self._on_death)
        return True

    def _send(self, _events: int = 0) -> None:
        if self._pipes is None:
            return
        try:
            while self._to_send:
                sent = os.write(self._pipes.commands, self._to_send[:_READ])
                self._to_send = self._to_send[sent:]
        except BlockingIOError:
            self._loop.watch(self._pipes.commands, self._send, read=False, write=True)
            return
        except BrokenPipeError:
            self._to_send = b""  # the notice of its death is on its way
        self._loop.forget(self._pipes.commands)

    def _on_output(self, _events: int) -> None:
        self._drain(rounds=4)

    def _drain(self, *, rounds: int) -> None:
        if self._pipes is None:
            return
        for _ in range(rounds):
            try:
                data = os.read(self._pipes.output, _READ)
            except BlockingIOError:
                return
            if not data:
                self._loop.forget(self._pipes.output)
                return
            if self._job is None or self._job.command is None:
                self._early += data
                del self._early[: max(0, len(self._early) - _EARLY)]
                continue
            self._output.add(data)
            if self._output.size > self._config.output_bytes and self._ending is None:
                self._kill(verdict.exceeded("output", f"bash: printed more than {self._output.size:,} bytes"))

    def _on_status(self, _events: int) -> None:
        if self._pipes is None:
            return
        try:
            data = os.read(self._pipes.status, 4096)
        except BlockingIOError:
            return
        if not data:
            self._loop.forget(self._pipes.status)
            return
        self._status += data
        while b"\n" in self._status:
            line, _, rest = bytes(self._status).partition(b"\n")
            self._status = bytearray(rest)
            words = line.split()
            if len(words) == 2 and words[0] == str(self._serial).encode() and words[1].isdigit():
                self._ended(int(words[1]))
        del self._status[:-4096]

    def _ended(self, code: int) -> None:
        """The command is over: all it printed itself is in the pipe by now."""
        if self._job is None or self._ending is not None:
            return
        self._drain(rounds=64)
        if self._ending is None:
            self._finish(self._result(code))

    def _result(self, code: int) -> bytes:
        if code == 0:
            return result_json(self._output.text(), is_error=False)
        limit = self._limit_met(code)
        text = self._output.text()
        return result_json(verdict.exceeded(limit, text) if limit else text, is_error=True)

    def _limit_met(self, code: int) -> str | None:
        end = verdict.Ending(
            code=code,
            before=self._before,
            after=self._gauges.read(),
            disk_full=verdict.is_full(self._config.workspace) or verdict.is_full("/tmp"),
            memory_uncounted=not self._gauges.counts_memory,
            ending=self._output.ending(),
        )
        return verdict.of_failure(end)

    def _on_death(self, _events: int) -> None:
        """The keeper says that bash itself is gone, or the keeper is."""
        if self._pipes is None:
            return
        self._loop.forget(self._pipes.death)
        self._usable = False
        self._terminated = True
        if self._ending is None and self._job is not None and self._job.command is not None:
            self._drain(rounds=64)
            if self._ending is None:
                self._finish(self._result(-1))

    # Ending it

    def _timed_out(self) -> None:
        if self._job is not None:
            # bash without processes to be had tries again for half a minute, which looks like a slow command.
            starved = self._limit_met(-1) == "pids"
            text = self._job.timeout_text
            self._kill(verdict.exceeded("pids", text) if starved else text)

    def _kill(self, ending: str | None) -> None:
        """End the shell and all it started; then the running call gets `ending`, or a restart its fresh shell."""
        if self._ending is not None:
            return
        self._ending = ending or ""
        self._usable = False
        processes.Purge(self._loop, self._keeper, self._purged)

    def _purged(self) -> None:
        if self._keeper:
            processes.send(self._keeper, signal.SIGKILL)
            self._loop.later(0.002, self._purged)
            return
        ending, self._ending = self._ending or "", None
        job = self._job
        if job is None:
            return
        if job.command is None:
            self._restarted()
            return
        self._terminated = True
        if ending.startswith("resource_limit_exceeded: output"):
            ending += "\n" + self._output.text()
        self._finish(result_json(ending, is_error=True))

    def _keeper_exited(self, _status: int) -> None:
        self._keeper = 0
        self._on_death(0)
        if self._pipes is not None:
            for fd in self._pipes:
                self._loop.forget(fd)
                os.close(fd)
            self._pipes = None
        if self._ending is None:
            processes.Purge(self._loop, processes.NOBODY, _nothing)


def _nothing() -> None:
    """What is left to do once the strays of a dead keeper are gone."""


def _keep(config: Config, cmd_r: int, out_w: int, status_w: int, death_w: int) -> None:
    """The keeper: start bash, adopt its orphans, tell of its death. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        hardening.become_keeper()
        worker.close_all_but({cmd_r, out_w, status_w, death_w})
        bash = os.fork()
        if bash == 0:
            os.close(death_w)
            _become_bash(config, cmd_r, out_w, status_w)
        for fd in (cmd_r, out_w, status_w):
            os.close(fd)
        while True:
            pid, status = os.wait()
            if pid == bash:
                os.write(death_w, b"%d\n" % status)
    except ChildProcessError:
        os._exit(0)
    finally:
        os._exit(1)


def _become_bash(config: Config, cmd_r: int, out_w: int, status_w: int) -> None:
    try:
        os.setsid()
        # Out of the way first: any of them may sit on a number that is about to be taken.
        cmd_r, out_w, status_w = (fcntl.fcntl(fd, fcntl.F_DUPFD, _STATUS + 1) for fd in (cmd_r, out_w, status_w))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(cmd_r, 0)
        os.dup2(out_w, 1)
        # What bash itself says between commands (a trace, say) is nobody's output.
        os.dup2(null, 2)
        os.dup2(out_w, _OUT)
        os.dup2(status_w, _STATUS)
        for fd in (0, 1, 2, _OUT, _STATUS):
            os.set_inheritable(fd, True)
        worker.close_all_but({_OUT, _STATUS})
        os.chdir(config.workspace)
        hardening.become_tool(config, cpu_s=config.cpu_s)
        os.execve(_BASH, [_BASH, "--noprofile", "--norc"], environment(config))
    except OSError as e:
        os.write(_OUT, f"bash: cannot start {_BASH}: {e}\n".encode())
    finally:
        os._exit(127)


def environment(config: Config) -> dict[str, str]:
    """What a command sees: the image's own variables, and nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC_", "GALLEY_"))}
    kept.update(HOME=config.home, PS1="", PS2="", TERM="dumb", LANG=kept.get("LANG", "C.UTF-8"))
    return kept
