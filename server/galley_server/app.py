"""The assembly: builds every part by hand, in the one list of lifetimes, and runs until it is told to stop."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from galley_server.brain.brain import Brain
from galley_server.brain.model import MessagesModel
from galley_server.brain.runner import Workplace
from galley_server.broker.broker import Broker, open_broker
from galley_server.drivers import MakeDrivers, drivers_of, limits_of
from galley_server.errors import ConfigError, ungrouped
from galley_server.hands.nowhere import Nowhere
from galley_server.hands.sandboxes import SandboxHands
from galley_server.home import run_dir, socket_to_bind
from galley_server.http.app import build_http
from galley_server.http.serving import Address, loop_factory
from galley_server.http.serving import serve as serve_http
from galley_server.kept import api_key_of, home_id_of
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.lock import HomeLock
from galley_server.log.log import Log
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries, Summary
from galley_server.mcp.gate import Gate
from galley_server.mcp.http import HTTPEndpoint
from galley_server.mcp.server import build_server
from galley_server.mcp.socket import SocketEndpoint
from galley_server.mcp.tools import tools_of
from galley_server.own_address import refuse_own_address
from galley_server.retire import Traffic, until_unneeded
from galley_server.runtime.attachments import Attachments
from galley_server.runtime.liveness import Liveness
from galley_server.runtime.model_directory import EndpointDirectory
from galley_server.runtime.models import NoDirectory
from galley_server.runtime.reach import SessionReach
from galley_server.runtime.runtime import Runtime, open_files
from galley_server.secret import Secret
from galley_server.settings import Settings
from galley_server.state import StateFiles

logger = logging.getLogger(__name__)

# How long a detached server waits for the one before it, which may still be closing the store.
_HANDOVER_S: Final = 10.0
# A server that was told to stop is gone within 5 s. What hangs longer than this goes on from the log at the next
# start, as after a kill.
_LAST_RESORT_S: Final = 4.5


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and for how long: `grace_s` None until told to stop, else until so long after the last need."""

    host: str
    port: int
    any_port_will_do: bool = False
    grace_s: float | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """What is kept, opened."""

    files: StateFiles
    api_key: Secret
    home_id: str
    database: Database
    rows: SqliteStore[Summary]
    log: Log


@dataclass(frozen=True, slots=True)
class Kitchen:
    """A running server."""

    address: Address
    brain: Brain
    socket: SocketEndpoint
    traffic: Traffic

    def needed(self) -> bool:
        return self.socket.clients > 0 or self.traffic.requests > 0 or self.brain.busy > 0


def serve(settings: Settings, listen: Listen, drivers: MakeDrivers = drivers_of) -> int:
    """Run until SIGTERM, SIGINT or SIGHUP, or until nobody needs it. The exit status."""
    _log_to_stderr(settings)
    with ungrouped(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, listen, drivers))
    return 0


async def _serve(settings: Settings, listen: Listen, drivers: MakeDrivers) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with kitchen(settings, listen, drivers) as running:
        sys.stdout.write(f"galley ready {running.address.url}\n")
        sys.stdout.flush()
        await _until_done(running, stop, listen.grace_s)
        last_resort = threading.Timer(_LAST_RESORT_S, _leave)
        last_resort.daemon = True
        last_resort.start()


async def _until_done(running: Kitchen, stop: asyncio.Event, grace_s: float | None) -> None:
    if grace_s is None:
        await stop.wait()
        return
    async with asyncio.TaskGroup() as tasks:
        told = tasks.create_task(stop.wait(), name="stop")
        alone = tasks.create_task(until_unneeded(running.needed, running.socket.retire, grace_s=grace_s), name="retire")
        await asyncio.wait([told, alone], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        alone.cancel()


def _leave() -> None:
    logger.error("something did not end in time: leaving it to the log, which the next start goes on from")
    os._exit(1)


@asynccontextmanager
async def kitchen(settings: Settings, listen: Listen, drivers: MakeDrivers = drivers_of) -> AsyncIterator[Kitchen]:
    """Everything of one server, from the lock on its home to the open door. Raises ConfigError, Unavailable.

    What is opened last is closed first: the doors, so that nothing new comes in while the rest ends.
    """
    async with AsyncExitStack() as stack:
        store = await _open_store(stack, settings, patient=listen.grace_s is not None)
        broker = await _open_broker(stack, settings, store)
        runtime, brain = await _open_work(stack, settings, store, drivers, broker)
        mcp = build_server(tools_of(runtime))
        endpoint = HTTPEndpoint(mcp, Gate.for_bind(listen.host, store.api_key))
        await stack.enter_async_context(endpoint.running())
        closing = asyncio.Event()
        traffic = Traffic(
            build_http(
                runtime,
                api_key=store.api_key,
                closing=closing,
                body_limit=settings.limits.body_bytes,
                file_limit=settings.limits.file_bytes,
                relay=None if broker is None else broker.client,
                routes=endpoint.routes(),
            )
        )
        address = await _open_door(stack, traffic, listen, closing)
        if broker is not None:
            broker.begin(address.url)
        await asyncio.to_thread(refuse_own_address, settings.model.base_url, host=address.host, port=address.port)
        stack.push_async_callback(endpoint.close)
        socket = await stack.enter_async_context(SocketEndpoint.open(mcp, socket_to_bind(settings.home)))
        # Only now: a server that cannot listen must not have moved a session.
        await brain.wake_unsettled(store.rows)
        yield Kitchen(address, brain, socket, traffic)


async def _open_store(stack: AsyncExitStack, settings: Settings, *, patient: bool) -> Store:
    files = StateFiles(settings.home)
    await _own(stack, files, patient=patient)
    api_key = api_key_of(files.api_key, settings.api_key)
    home_id = home_id_of(files.home_id)
    database = await stack.enter_async_context(Database.open(files.database))
    chain_key = ChainKey.open(files.chain_key)
    rows = await stack.enter_async_context(SqliteStore.open(database, chain_key, SessionSummaries()))
    log = await stack.enter_async_context(Log.open(rows))
    return Store(files, api_key, home_id, database, rows, log)


async def _own(stack: AsyncExitStack, files: StateFiles, *, patient: bool) -> None:
    """Make the home if need be, and be its one server."""
    try:
        run_dir(files.home)
    except OSError as error:
        raise ConfigError(f"GALLEY_HOME {files.home} cannot be used: {error.strerror}") from None
    deadline = time.monotonic() + (_HANDOVER_S if patient else 0.0)
    while True:
        try:
            stack.enter_context(HomeLock.acquire(files.lock))
            return
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(0.1)


async def _open_broker(stack: AsyncExitStack, settings: Settings, store: Store) -> Broker | None:
    if settings.broker is None:
        return None
    reach = SessionReach(store.log, store.rows)
    return await stack.enter_async_context(open_broker(settings.broker, store.files.home, reach))


async def _open_work(
    stack: AsyncExitStack, settings: Settings, store: Store, make_drivers: MakeDrivers, broker: Broker | None
) -> tuple[Runtime, Brain]:
    uploads = await stack.enter_async_context(open_files(settings, store.database))
    model = await stack.enter_async_context(MessagesModel.open(settings.model))
    drivers = make_drivers(settings.sandbox, store.files, store.home_id)
    hands = await stack.enter_async_context(
        SandboxHands.open(
            drivers.chosen,
            former=drivers.former,
            sessions=Liveness(store.rows),
            files=uploads,
            outlets=None if broker is None else broker.outlets,
            outputs=uploads,
            limits=limits_of(settings.sandbox),
        )
    )
    workplace = Workplace(
        log=store.log,
        model=model,
        hands=hands,
        servers=Nowhere() if broker is None else broker.servers,
        files=Attachments(uploads),
        max_rounds=settings.limits.tool_rounds,
    )
    brain = await stack.enter_async_context(Brain.open(workplace))
    runtime = Runtime(
        settings,
        database=store.database,
        log=store.log,
        summaries=store.rows,
        files=uploads,
        brain=brain,
        hands=hands,
        vaults=None if broker is None else broker.vaults,
        directory=EndpointDirectory(model.client)
        if settings.model.api_key or settings.model.auth_token
        else NoDirectory(),
    )
    return runtime, brain


async def _open_door(stack: AsyncExitStack, app: Traffic, listen: Listen, closing: asyncio.Event) -> Address:
    try:
        return await stack.enter_async_context(serve_http(app, host=listen.host, port=listen.port, closing=closing))
    except ConfigError:
        if not listen.any_port_will_do:
            raise
    return await stack.enter_async_context(serve_http(app, host=listen.host, port=0, closing=closing))


def _log_to_stderr(settings: Settings) -> None:
    """Our own words at the level that was set; libraries only when something is wrong, whatever the level."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("galley_server", "galley_sandbox"):
        logging.getLogger(name).setLevel(settings.log_level.upper())
