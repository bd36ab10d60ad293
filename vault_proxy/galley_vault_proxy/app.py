"""Everything put together, by hand and in one place: the one list of what is opened and, in reverse, closed."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from galley_vault_proxy.admin.app import build_http
from galley_vault_proxy.admin.audit import AuditFace
from galley_vault_proxy.admin.grants import GrantFace
from galley_vault_proxy.admin.health import HealthFace
from galley_vault_proxy.audit import Audit
from galley_vault_proxy.config import read_config
from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.grant import rows
from galley_vault_proxy.grant.registry import Registry
from galley_vault_proxy.http.serving import Address, loop_factory
from galley_vault_proxy.http.serving import serve as listen_on
from galley_vault_proxy.kept import grant_key_of, private_directory, service_key_of
from galley_vault_proxy.settings import Settings
from galley_vault_proxy.state import State
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.port import SecretStore

_SCHEMAS: Final = (rows.SCHEMA,)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. Port 0 takes any free one."""

    host: str
    port: int
    uds: Path | None = None


def serve(settings: Settings, listen: Listen) -> int:
    """Run until SIGTERM or SIGINT. Raises ConfigError."""
    _log_to_stderr(settings)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, listen))
    return 0


async def _serve(settings: Settings, listen: Listen) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, listen) as address:
        sys.stdout.write(f"galley-vault-proxy ready {address.url}\n")
        sys.stdout.flush()
        await stop.wait()


@asynccontextmanager
async def running(settings: Settings, listen: Listen) -> AsyncIterator[Address]:
    """The proxy, accepting requests inside the block. Raises ConfigError."""
    private_directory(settings.home)
    key = service_key_of(settings.home, settings.key)
    stdio = read_config(settings.config)
    closing = asyncio.Event()
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(State.open(settings.home / "state.db", _SCHEMAS))
        audit = await stack.enter_async_context(Audit.open(settings.home / "audit", max_bytes=settings.audit_bytes))
        store = await stack.enter_async_context(_store(settings))
        registry = await stack.enter_async_context(Registry.open(state, key=grant_key_of(settings.home), gate=store))
        app = build_http(
            [
                GrantFace(registry, audit, stdio=frozenset(stdio)),
                AuditFace(audit),
                HealthFace([("state", registry.ready), ("audit", audit.ready), ("store", store.ready)]),
            ],
            key=key,
            audit=audit,
        )
        yield await stack.enter_async_context(
            listen_on(app, host=listen.host, port=listen.port, key=key, closing=closing, uds=listen.uds)
        )


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[SecretStore]:
    if settings.vault is not None:
        raise ConfigError("VAULT_ADDR is set, and this build has the embedded store only: unset it")
    async with EmbeddedStore.open(settings.home, key=settings.store_key) as store:
        yield store


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # These print the URLs that they ask, and a URL of somebody else may hold a key.
    for name in ("httpx2", "httpcore2", "uvicorn", "urllib3", "hvac", "mcp"):
        logging.getLogger(name).setLevel(logging.WARNING)
