"""The page of the egress door names every reason that it gives and every variable that it sets."""

import re
from pathlib import Path

import galley_vault_proxy.egress
from galley_sandbox.way_out import EGRESS, MCP, WayOut, environment_of
from galley_vault_proxy import netguard

PAGE = (Path(__file__).parents[2] / "docs" / "egress.md").read_text()
SOURCES = [*Path(next(iter(galley_vault_proxy.egress.__path__))).glob("*.py"), Path(netguard.__file__)]


def in_tables() -> set[str]:
    first_cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    return {word for cell in first_cells for word in re.findall(r"`(\w+)`", cell)}


def test_every_reason_has_its_line() -> None:
    given = re.compile(r'(?:error_code|reason)="(\w+)"|, "(tls_failed)"')
    reasons = {a or b for source in SOURCES for a, b in given.findall(source.read_text())} - {"redirect_refused"}
    assert len(reasons) > 20
    assert reasons <= in_tables()


def test_every_variable_has_its_line() -> None:
    variables = environment_of(WayOut({EGRESS: 1, MCP: 2}, "t", b""))
    assert variables.keys() <= in_tables()


def test_nothing_is_listed_that_does_not_exist() -> None:
    text = "".join(source.read_text() for source in SOURCES)
    words = in_tables() - environment_of(WayOut({EGRESS: 1, MCP: 2}, "t", b"")).keys()
    assert {word for word in words if f'"{word}"' not in text} == set()
