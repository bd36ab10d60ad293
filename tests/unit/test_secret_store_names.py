"""Ids as a store sees them."""

import re
import string

import pytest
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.store.names import VAULT_NAME, check_path, credential_name, id_of, role_name, vault_name

ODD = [
    "*",
    "+",
    "..",
    "a/b",
    "A",
    "a",
    "Aa",
    "aA",
    "-",
    "vlt-",
    " ",
    "%2e",
    "k",
    "K",
    "0",
    "O",
    "vlt_01AbC",
    "vlt_01aBC",
]


@pytest.mark.parametrize("made", ["vlt_01K0000000000000000000000A", "a", "Z" * 40, *ODD])
def test_a_name_is_plain_and_gives_its_id_back(made: str) -> None:
    assert re.fullmatch(r"vlt-[a-z0-9]{1,64}", vault_name(made))
    assert id_of(vault_name(made)) == made
    assert id_of(credential_name(made)) == made


def test_no_two_ids_share_a_name_even_when_case_is_folded() -> None:
    ids = {*ODD, *string.printable.strip(), *(a + b for a in "aAbB0" for b in "aAbB0")}
    assert len({vault_name(each).casefold() for each in ids}) == len(ids)


@pytest.mark.parametrize("bad", ["", "a" * 41, "ü", "\u212a", "a\n", "\0", "\x7f"])
def test_what_cannot_be_an_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        vault_name(bad)


@pytest.mark.parametrize("bad", ["", "vlt-", "vlt-A", "vlt-1", "vlt-a", "vlt-me======", "crd", "xxx-me", "vlt-mf"])
def test_what_is_no_name_of_ours_gives_no_id(bad: str) -> None:
    assert id_of(bad) is None


def test_a_role_cannot_reach_into_another_vaults() -> None:
    vault = vault_name("vlt_1")
    assert role_name(vault, "reader") == f"galley-{vault}-reader"
    for bad in ("", "-b-reader", "a-b", "A", "*", "a/b", "a" * 65, "_"):
        with pytest.raises(InvalidRequest):
            role_name(vault, bad)
    with pytest.raises(InvalidRequest):
        role_name("vlt-a-b", "reader")


@pytest.mark.parametrize("bad", ["", "/a", "a/", "a//b", "a/../b", "a/./b", "a/%2e", "a?b", "a#b", "a b", "a/\n", ".."])
def test_a_path_that_could_lead_elsewhere_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        check_path(bad)


def test_a_plain_path_is_taken_as_it_is() -> None:
    path = f"secret/data/galley/{vault_name('vlt_1')}/{credential_name('vcrd_1')}"
    assert check_path(path) == path
    assert VAULT_NAME.fullmatch(path.split("/")[3])
