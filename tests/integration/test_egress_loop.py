"""The event loop that the program runs on is another one than that of the tests, and its transports differ."""

import asyncio
from pathlib import Path

from galley_vault_proxy.http.serving import loop_factory

from tests.integration.egress_kit import HOST, OTHER, connect, credential, get, host, kitchen


def test_it_runs_on_the_loop_that_the_program_runs_on(tmp_path: Path) -> None:
    async def visit() -> None:
        async with (
            kitchen(tmp_path, found=[credential()]) as house,
            host(house.authority.server_context(HOST, OTHER)) as served,
            asyncio.timeout(15),
        ):
            token = await house.grant(network="unrestricted")
            async with house.intercepted(token, HOST, served.port) as client:
                assert (await client.ask(get("/", f"{HOST}:{served.port}")))[0] == 200
            async with house.connected(token, OTHER, served.port) as client:
                await client.start_tls(house.authority.client_context(), OTHER)
                assert (await client.ask(get("/", OTHER)))[0] == 200
            async with house.client(over_uds=True) as client:
                assert (await client.ask(connect(HOST, 1, "galley1.x.y")))[0] == 407

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(visit())
