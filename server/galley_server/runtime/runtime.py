"""Everything a face needs, put together over one store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from galley_server.log.database import Database
from galley_server.log.log import Log
from galley_server.log.store import Summaries
from galley_server.log.summary import Summary
from galley_server.runtime import clock as clocks
from galley_server.runtime.agents import Agents
from galley_server.runtime.clock import Clock
from galley_server.runtime.environments import Environments
from galley_server.runtime.events import Events
from galley_server.runtime.files import Files
from galley_server.runtime.idempotency import Once
from galley_server.runtime.models import ModelDirectory, Models
from galley_server.runtime.ports import NoVaults, Releaser, Vaults, Waker, wakes
from galley_server.runtime.sessions import Sessions
from galley_server.settings import Settings

FILES: Final = "files"
"""The directory of the home that holds the contents of files."""


class Runtime:
    """The one object that both faces call. Faces never touch the log, the brain or the hands."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        log: Log,
        summaries: Summaries[Summary],
        files: Files,
        brain: Waker,
        hands: Releaser,
        vaults: Vaults | None = None,
        directory: ModelDirectory,
        clock: Clock = clocks.now,
    ) -> None:
        """`files` is opened first (see `open_files`): the hands and the brain read it too."""
        once = Once(database)
        log.watch(wakes(brain))
        self.settings = settings
        self.vaults = vaults or NoVaults()
        self.files = files
        self.models = Models(directory, default_model=settings.model.default)
        self.agents = Agents(database, once, default_model=settings.model.default, clock=clock)
        self.environments = Environments(database, once, clock=clock)
        self.sessions = Sessions(
            log,
            summaries,
            once,
            agents=self.agents,
            environments=self.environments,
            files=files,
            hands=hands,
            vaults=self.vaults,
            clock=clock,
        )
        self.events = Events(log, summaries, once, files=files, clock=clock)


@asynccontextmanager
async def open_files(settings: Settings, database: Database, *, clock: Clock = clocks.now) -> AsyncIterator[Files]:
    """The files of a home: the hands mount from `Files.content`, the brain shows models what `Attachments` reads."""
    async with Files.open(
        database, Once(database), settings.home / FILES, limit=settings.limits.file_bytes, clock=clock
    ) as files:
        yield files
