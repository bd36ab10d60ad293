"""hand-over: an operator's command writes a login into two files, and the proxy logs in with them."""

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from galley_vault_proxy import bootstrap, hand_over
from galley_vault_proxy.errors import ConfigError, StoreUnavailable
from galley_vault_proxy.settings import Settings, VaultSettings

from tests.contract.secret_store_kit import vault_store
from tests.integration.vault_bench import checked_server
from tests.vault_server.server import TestVault


@pytest.fixture
def vault() -> Iterator[TestVault]:
    with checked_server() as server:
        yield server.vault


def operator(vault: TestVault) -> dict[str, str]:
    return {"VAULT_ADDR": vault.address, "VAULT_TOKEN": vault.root_token}


def handed_over(vault: TestVault, folder: Path, *words: str) -> dict[str, str]:
    """The environment of a proxy that logs in with what lies in the folder."""
    assert bootstrap.main(["--approle", "galley"], operator(vault)) == 0
    assert hand_over.main([str(folder), *words], operator(vault)) == 0
    return {"VAULT_ADDR": vault.address, "GALLEY_VAULT_AUTH": "approle"}


def logs_in(environ: dict[str, str], home: Path) -> None:
    """Raises StoreUnavailable."""
    settings = Settings.from_env(environ).vault
    assert settings is not None
    home.mkdir()

    async def log_in(settings: VaultSettings) -> StoreUnavailable | None:
        async with vault_store(settings, home) as store:
            try:
                await store.ready()
            except StoreUnavailable as error:
                return error
        return None

    error = asyncio.run(log_in(settings))
    if error is not None:
        raise error


def said(out: str) -> dict[str, str]:
    """The settings that `hand-over` printed; what bootstrap printed before is indented."""
    lines = [line for line in out.splitlines() if line.startswith("GALLEY_VAULT_")]
    return dict(word.split("=", 1) for line in lines for word in line.split())


@pytest.mark.parametrize("words", [[], ["--plain"]])
def test_a_proxy_logs_in_with_what_was_handed_over(
    vault: TestVault, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    environ = handed_over(vault, tmp_path / "login", *words)
    out = capsys.readouterr().out
    # What it prints is what the proxy has to be told, and no secret.
    assert (tmp_path / "login" / "secret_id").read_text().strip() not in out
    logs_in({**environ, **said(out)}, tmp_path / "home")


def test_a_wrapped_login_opens_once_and_a_plain_one_again(
    vault: TestVault, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = handed_over(vault, tmp_path / "login")
    wrapped = {**environ, **said(capsys.readouterr().out)}
    logs_in(wrapped, tmp_path / "first")
    with pytest.raises(StoreUnavailable, match="the wrapping token is spent"):
        logs_in(wrapped, tmp_path / "second")
    # A new one in its place is all that it takes.
    handed_over(vault, tmp_path / "login")
    logs_in(wrapped, tmp_path / "third")
    capsys.readouterr()
    environ = handed_over(vault, tmp_path / "login", "--plain")
    plain = {**environ, **said(capsys.readouterr().out)}
    logs_in(plain, tmp_path / "fourth")
    logs_in(plain, tmp_path / "fifth")


def test_the_files_are_for_their_owner_alone_and_leave_no_draft(vault: TestVault, tmp_path: Path) -> None:
    handed_over(vault, tmp_path / "login")
    handed_over(vault, tmp_path / "login")
    files = sorted((tmp_path / "login").iterdir())
    assert [file.name for file in files] == ["role_id", "secret_id"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_it_says_what_is_missing(vault: TestVault, tmp_path: Path) -> None:
    assert bootstrap.main(["--approle", "galley"], operator(vault)) == 0
    with pytest.raises(ConfigError, match="bootstrap --approle other"):
        hand_over.main([str(tmp_path), "--approle", "other"], operator(vault))
    with pytest.raises(ConfigError, match="VAULT_TOKEN"):
        hand_over.main([str(tmp_path)], {"VAULT_ADDR": vault.address})
    assert list(tmp_path.iterdir()) == []
