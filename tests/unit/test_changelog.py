"""The changelog's top entry is this version."""

import re
from pathlib import Path

from galley_server import __version__

PAGE = Path(__file__).parents[2] / "CHANGELOG.md"


def test_the_top_entry_is_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\] - \d{4}-\d{2}-\d{2}$", PAGE.read_text(), re.MULTILINE)
    assert versions[0] == __version__
