"""`galley doctor`: tries what the server will need, and says for everything that fails what to do about it.

It changes nothing: no home is made, no key, no image; the one model request it sends asks for a single word.
"""

import asyncio
import importlib.metadata
import os
import platform
import secrets
import shutil
import socket
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from galley_sandbox.docker.driver import Docker
from galley_sandbox.errors import SandboxError, SandboxUnavailable
from galley_sandbox.port import Driver

from galley_server import __version__
from galley_server.brain.model import MessagesModel, ModelFailed, ModelRequest
from galley_server.broker.child import Child
from galley_server.broker.client import Neighbour, ProxyClient
from galley_server.broker.place import API_SOCKET, Sockets
from galley_server.drivers import drivers_of
from galley_server.errors import ChainBroken, ConfigError, Unavailable
from galley_server.home import answers, socket_to_dial
from galley_server.kept import service_key_of
from galley_server.log.chain import ChainKey
from galley_server.log.verify import reading, session_ids, verify
from galley_server.secret import Secret
from galley_server.settings import MEBIBYTE, BrokerSettings, Settings
from galley_server.state import StateFiles

Verdict: TypeAlias = Literal["ok", "note", "fail"]
"""`fail` is what the server cannot do its work without; `note` is worth knowing."""

PROBE_S: Final = 60.0
MODEL_S: Final = 30.0
STORE_S: Final = 20.0
_LITTLE_SPACE: Final = 512 * MEBIBYTE
_NO_IMAGE: Final = "the engine answers; the sandbox image is not here yet, so nothing was tried"
_MAKE_IMAGE: Final = "nothing, if the first tool call may take minutes; it makes the image"
_LIBRARIES: Final = ("anthropic", "mcp", "docker", "starlette", "uvicorn")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str | None = None


Check: TypeAlias = Callable[[], Coroutine[None, None, list[Finding]]]


async def examine(settings: Settings, *, port: int) -> list[Finding]:
    """Run the checks side by side, each bounded in time, and return what they found in a fixed order."""
    files = StateFiles(settings.home)
    # The probes' sandboxes are not this home's: a server that runs beside us must not take them for its own.
    home_id = f"doctor_{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="galley-doctor-") as workshop:
        drivers = drivers_of(settings.sandbox, StateFiles(Path(workshop)), home_id)
        async with AsyncExitStack() as stack:
            for driver in (*drivers.chosen, *drivers.former):
                stack.push_async_callback(driver.close)
            checks: list[Check] = [
                _versions,
                lambda: _on_thread(_home, files),
                lambda: _on_thread(_store, files),
                lambda: _on_thread(_server, files, port),
                *[_bound_sandbox(driver) for driver in drivers.chosen],
                lambda: _broker(settings, Path(workshop)),
                lambda: _model(settings),
            ]
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(check()) for check in checks]
    return judged([finding for task in running for finding in task.result()])


def judged(findings: Sequence[Finding]) -> list[Finding]:
    """One sandbox that works is enough: where there is one, another that does not is only worth a note."""
    works = any(finding.subject.startswith("sandbox ") and finding.verdict == "ok" for finding in findings)
    return [
        Finding(finding.subject, "note", finding.detail, finding.fix)
        if works and finding.verdict == "fail" and finding.subject.startswith("sandbox ")
        else finding
        for finding in findings
    ]


async def _on_thread(check: Callable[..., list[Finding]], *arguments: object) -> list[Finding]:
    return await asyncio.to_thread(check, *arguments)


async def _versions() -> list[Finding]:
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    system = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.platform(terse=True)}"
    return [Finding("versions", "ok", f"galley {__version__}; {system}; {libraries}")]


def _home(files: StateFiles) -> list[Finding]:
    home = files.home
    if not home.exists():
        return [Finding("home", "ok", f"{home} does not exist yet; the first start makes it"), *_space(home)]
    found = home.stat()
    if not stat.S_ISDIR(found.st_mode):
        return [Finding("home", "fail", f"{home} is not a directory", "set GALLEY_HOME to a directory")]
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return [
            Finding(
                "home",
                "fail",
                f"{home} cannot be written by you (uid {os.geteuid()})",
                f"sudo chown -R {os.geteuid()} {home}",
            )
        ]
    problems = [
        Finding("home", "fail", f"{path} can be read by others", f"chmod 600 {path}")
        for path in (files.database, files.chain_key, files.api_key)
        if path.exists() and path.stat().st_mode & 0o077
    ]
    return [*(problems or [Finding("home", "ok", str(home))]), *_space(home)]


def _space(home: Path) -> list[Finding]:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free // MEBIBYTE:,} MiB free for {home}"
    if free < _LITTLE_SPACE:
        return [Finding("disk", "fail", detail, "free some space there, or set GALLEY_HOME to another disk")]
    return [Finding("disk", "ok", detail)]


def _store(files: StateFiles) -> list[Finding]:
    if not files.database.exists():
        return [Finding("store", "ok", "there is none yet; the first start makes it")]
    size = f"{files.database.name}, {files.database.stat().st_size / MEBIBYTE:.1f} MiB"
    try:
        with reading(files.database) as connection:
            return [_sound(connection, files, size)]
    except ChainBroken as error:
        return [
            Finding("store", "fail", f"the log was changed from outside: {error}", "see docs/operations.md, Verify")
        ]
    except ConfigError as error:
        return [Finding("store", "fail", str(error), "see docs/operations.md, Upgrade")]
    except (Unavailable, sqlite3.DatabaseError) as error:
        return [_damaged(f"{size}: {error}")]


def _sound(connection: sqlite3.Connection, files: StateFiles, size: str) -> Finding:
    deadline = time.monotonic() + STORE_S
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    try:
        integrity = [line for (line,) in connection.execute("PRAGMA quick_check(5)")]
        if integrity != ["ok"]:
            return _damaged(f"{size}: {'; '.join(integrity)}")
        if not files.chain_key.exists():
            lost = f"{files.chain_key} is missing: nothing that was logged can be proven"
            return Finding("store", "fail", lost, "restore it from where you keep your backups")
        key = ChainKey.open(files.chain_key)
        sessions = session_ids(connection)
        for session_id in sessions:
            verify(connection, key, session_id)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise
        return Finding(
            "store", "note", f"{size}: nothing wrong found in {STORE_S:.0f} s", "for all of it: galley log verify"
        )
    return Finding("store", "ok", f"{size}, sound; {len(sessions)} sessions, every chain verified")


def _damaged(detail: str) -> Finding:
    return Finding("store", "fail", detail, "stop the server and put back a file that `galley backup` made")


def _server(files: StateFiles, port: int) -> list[Finding]:
    if files.home.exists() and _answers(files):
        return [Finding("server", "ok", f"a server of this home is running and answers on {files.home / 'run'}")]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            taken = f"none is running for this home, and port {port} is taken: {error.strerror}"
            return [Finding("server", "note", taken, f"start it on another: galley serve --port {port + 1}")]
    return [Finding("server", "ok", f"none is running for this home; port {port} is free")]


def _answers(files: StateFiles) -> bool:
    with suppress(ConfigError, OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        path = socket_to_dial(files.home)
        if path is not None:
            probe.settimeout(2.0)
            probe.connect(str(path))
            return True
    return False


def _bound_sandbox(driver: Driver) -> Check:
    return lambda: _sandbox(driver)


async def _sandbox(driver: Driver) -> list[Finding]:
    subject = f"sandbox {driver.name}"
    try:
        async with asyncio.timeout(PROBE_S):
            if isinstance(driver, Docker) and not await driver.image_is_here():
                return [Finding(subject, "note", _NO_IMAGE, _MAKE_IMAGE)]
            probe = await driver.probe()
            limits = await driver.limits_report()
    except SandboxUnavailable as error:
        return [Finding(subject, "fail", error.message, error.fix)]
    except SandboxError as error:
        return [Finding(subject, "fail", str(error), "see docs/operations.md, Sandboxes")]
    except TimeoutError:
        return [Finding(subject, "fail", f"no answer within {PROBE_S:.0f} s", "see what the engine is busy with")]
    held = ", ".join(f"{limit.name} ({limit.means})" for limit in limits if limit.holds)
    return [
        Finding(subject, "ok", f"really ran a command ({probe.detail})"),
        Finding(f"{driver.name} limits", "ok", f"hold: {held}"),
        *[
            Finding(f"{driver.name} limits", "note", f"{limit.name} does not hold: {limit.means}")
            for limit in limits
            if not limit.holds
        ],
    ]


async def _broker(settings: Settings, workshop: Path) -> list[Finding]:
    """Ask the vault proxy that runs; where none does, start one on a home of its own for a moment."""
    found = settings.broker
    if found is None:
        what = "GALLEY_BROKER is off: sandboxes have no network, agents no MCP servers and no vaults"
        return [Finding("vault proxy", "note", what)]
    running = _api_socket(settings.home) if found.sockets is None else found.sockets / API_SOCKET
    if running is None and found.environ.get("VAULT_ADDR"):
        what = "secrets are kept in Vault; not tried, because a login may be good for one time only"
        return [Finding("vault proxy", "note", what, "galley-vault-proxy doctor")]
    try:
        async with AsyncExitStack() as stack:
            client = await (_throwaway(found, workshop, stack) if running is None else _running(found, running, stack))
            await client.readiness()
    except (ConfigError, Unavailable) as error:
        return [Finding("vault proxy", "fail", error.message, "see docs/operations.md, Vault proxy")]
    return [Finding("vault proxy", "ok", "one was started, and was ready" if running is None else "it is ready")]


def _api_socket(home: Path) -> Path | None:
    """Of the vault proxy that the server of this home runs, if one does. Makes no home."""
    found = socket_to_dial(home, API_SOCKET) if home.exists() else None
    return found if answers(found) else None


async def _running(found: BrokerSettings, api: Path, stack: AsyncExitStack) -> ProxyClient:
    key = service_key_of(found.home / "service_key", found.key)
    return await stack.enter_async_context(ProxyClient.open(Sockets(api, api), key, Neighbour()))


async def _throwaway(found: BrokerSettings, workshop: Path, stack: AsyncExitStack) -> ProxyClient:
    key = Secret(secrets.token_hex(16))
    # With a key of its own, wherever that of the real one is.
    own = {"GALLEY_PROXY_HOME": str(workshop / "vault_proxy"), "GALLEY_PROXY_KEY": key.reveal()}
    environ = {**found.environ, **own, "GALLEY_PROXY_KEY_FILE": ""}
    sockets = Sockets.within(workshop)
    child = await stack.enter_async_context(Child.open(sockets, environ))
    child.begin("http://localhost")
    return await stack.enter_async_context(ProxyClient.open(sockets, key, child))


async def _model(settings: Settings) -> list[Finding]:
    asked = f"{settings.model.default} at {settings.model.base_url}"
    request = ModelRequest(
        model=settings.model.default,
        system=[],
        messages=[{"role": "user", "content": "Answer with the one word: ready"}],
        tools=[],
    )
    try:
        async with asyncio.timeout(MODEL_S), MessagesModel.open(settings.model) as model:
            answer = await model.answer(request, lambda _: None)
    except ModelFailed as error:
        return [Finding("model", "fail", f"{asked}: {error}", _model_fix(settings))]
    except TimeoutError:
        return [Finding("model", "fail", f"{asked}: no answer within {MODEL_S:.0f} s", _model_fix(settings))]
    return [Finding("model", "ok", f"{asked} answered ({answer.usage.output_tokens} tokens)")]


def _model_fix(settings: Settings) -> str:
    if settings.model.api_key is None and settings.model.auth_token is None:
        return "set ANTHROPIC_API_KEY (or GALLEY_MODEL_API_KEY and GALLEY_MODEL_BASE_URL for another endpoint)"
    return "check GALLEY_MODEL, GALLEY_MODEL_BASE_URL and GALLEY_MODEL_API_KEY (or their ANTHROPIC_ counterparts)"
