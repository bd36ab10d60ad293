"""The reference page of settings says what the code says."""

from pathlib import Path

from galley_server.settings import CATALOGUE

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_the_page_has_exactly_the_settings_of_the_catalogue() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{setting.name}` | {setting.default or 'not set'} | {setting.doc} |" for setting in CATALOGUE]
