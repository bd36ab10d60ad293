"""Every claim of the threat model names tests, and every test it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
CLAIMS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| claim", "| ---"))]


def test_every_claim_names_a_test() -> None:
    assert CLAIMS
    assert [claim for claim in CLAIMS if "::test_" not in claim] == []


def test_every_test_it_names_exists() -> None:
    named = re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", PAGE)
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (path := ROOT / "tests" / file).exists() or not re.search(rf"def {test}\(", path.read_text())
    ]
    assert missing == []
