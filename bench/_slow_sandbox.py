"""`galley serve` whose sandboxes take as long to start as the first argument says, in seconds."""

import asyncio
import os
import sys
from collections.abc import Sequence

from galley_sandbox.port import Driver, LimitStatus, Probe, Sandbox, Spec
from galley_server.app import Listen, serve
from galley_server.drivers import Drivers, drivers_of
from galley_server.settings import SandboxSettings, Settings
from galley_server.state import StateFiles


class Slow:
    """A real driver, later."""

    def __init__(self, driver: Driver, seconds: float) -> None:
        self._driver = driver
        self._seconds = seconds

    @property
    def name(self) -> str:
        return self._driver.name

    async def probe(self) -> Probe:
        return await self._driver.probe()

    async def provision(self, spec: Spec) -> Sandbox:
        await asyncio.sleep(self._seconds)
        return await self._driver.provision(spec)

    async def adopt(self) -> Sequence[Sandbox]:
        return await self._driver.adopt()

    async def destroy(self, sandbox_id: str) -> None:
        await self._driver.destroy(sandbox_id)

    async def close(self) -> None:
        await self._driver.close()

    async def limits_report(self) -> list[LimitStatus]:
        return await self._driver.limits_report()


def main() -> int:
    seconds = float(sys.argv[1])

    def slow(settings: SandboxSettings, files: StateFiles, home_id: str) -> Drivers:
        return Drivers(tuple(Slow(driver, seconds) for driver in drivers_of(settings, files, home_id).chosen))

    return serve(Settings.from_env(os.environ), Listen("127.0.0.1", 0), slow)


if __name__ == "__main__":
    sys.exit(main())
