"""The page of grants names every field of a request and of an audit line, and nothing else."""

import re
from dataclasses import fields
from pathlib import Path

from galley_vault_proxy.admin.shapes import GrantCreate
from galley_vault_proxy.audit import AuditLine

PAGE = (Path(__file__).parents[2] / "docs" / "grants.md").read_text()


def rows_of(heading: str) -> set[str]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))


def test_every_field_of_a_grant_is_told() -> None:
    assert rows_of("Making one") == set(GrantCreate.model_fields)


def test_every_field_of_an_audit_line_is_told() -> None:
    assert rows_of("The audit log") == {"id", "at"} | {field.name for field in fields(AuditLine)}
