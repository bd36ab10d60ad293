"""The page about Vault says what the code does."""

from pathlib import Path

import pytest
from galley_vault_proxy.cli import vault_name
from galley_vault_proxy.settings import VaultMounts
from galley_vault_proxy.store import vault_setup

PAGE = (Path(__file__).parents[2] / "docs" / "vault.md").read_text()


def test_every_permission_of_the_proxy_is_explained() -> None:
    table = PAGE.split("The policy `galley-proxy`")[1].split("The policy `galley-vault`")[0]
    for path, capabilities in vault_setup.proxy_paths(VaultMounts()).items():
        last = path.rsplit("/", 1)[-1]
        (row,) = [line for line in table.splitlines() if f"`{path}`" in line or f"`{last}`" in line]
        assert all(capability in row for capability in capabilities)


def test_the_page_names_the_numbers_in_force() -> None:
    assert vault_setup.CEILING_S == 24 * 3600
    assert "at most 24 hours" in PAGE


def test_names_in_vault_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert vault_name.main(["vlt_01"], {}) == 0
    assert vault_name.main(["vlt_01", "--role", "reader"], {}) == 0
    assert vault_name.main(["vlt_01", "--credential", "vcrd_01"], {"GALLEY_VAULT_KV_MOUNT": "kv"}) == 0
    name, role, path = capsys.readouterr().out.split()
    assert role == f"galley-{name}-reader"
    assert path.startswith(f"kv/galley/{name}/crd-")
