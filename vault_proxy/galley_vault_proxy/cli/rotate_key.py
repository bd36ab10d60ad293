"""`galley-vault-proxy rotate-key`: seals the embedded store anew under a new key. The proxy may run meanwhile."""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.settings import Settings
from galley_vault_proxy.store.embedded import EmbeddedStore, Rotation


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    argparse.ArgumentParser(
        prog="galley-vault-proxy rotate-key",
        description="Seal the embedded store anew under a new key and forget the old one. The proxy may go on running.",
    ).parse_args(argv)
    settings = Settings.from_env(environ)
    if settings.vault is not None:
        raise ConfigError("VAULT_ADDR is set: secrets are in Vault, which rotates its own keys")
    if not (settings.home / "secrets.db").exists():
        raise ConfigError(f"{settings.home} holds no embedded store: set GALLEY_PROXY_HOME")
    rotation = asyncio.run(_rotate(settings))
    sys.stdout.write(f"{rotation.secrets} secrets are sealed with the new key {rotation.key_id}; the old one is gone\n")
    return 0


async def _rotate(settings: Settings) -> Rotation:
    async with EmbeddedStore.open(settings.home, key=settings.store_key) as store:
        return await store.rotate()
